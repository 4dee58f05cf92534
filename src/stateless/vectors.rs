//! Tokens that others have published, and signatures that were made wrong on purpose.
//!
//! The published ones are the examples of RFC 7515 (appendix A), RFC 7520 (section 4) and RFC 8037 (appendix A.4). The
//! wrong ones were made for this test with a key that was thrown away: each is what its name says, raised to the
//! private exponent, so that only a checker of paddings tells it from a right one.

use super::settings::Algorithm;

/// A published token, and the JWK or the secret (`k`) that it is checked with.
pub struct Published {
    pub name: &'static str,
    pub algorithm: Algorithm,
    pub key: &'static str,
    pub token: &'static str,
}

pub static PUBLISHED: [Published; 8] = [
    Published {
        name: "RFC 7515, A.1",
        algorithm: Algorithm::Hs256,
        key: concat!(
            r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZ"#,
            r#"r1Z9CAow"}"#,
        ),
        token: concat!(
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.",
            "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.",
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        ),
    },
    Published {
        name: "RFC 7515, A.2",
        algorithm: Algorithm::Rs256,
        key: concat!(
            r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2"#,
            r#"mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSH"#,
            r#"SXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7"#,
            r#"aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#,
        ),
        token: concat!(
            "eyJhbGciOiJSUzI1NiJ9.",
            "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.",
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9",
            "uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB",
            "_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rq",
            "Vt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
    },
    Published {
        name: "RFC 7515, A.3",
        algorithm: Algorithm::Es256,
        key: concat!(
            r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_"#,
            r#"tue659LNpXW6pCyStikYjKIWI5a0"}"#,
        ),
        token: concat!(
            "eyJhbGciOiJFUzI1NiJ9.",
            "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    },
    Published {
        name: "RFC 7520, 4.1",
        algorithm: Algorithm::Rs256,
        key: concat!(
            r#"{"kty":"RSA","kid":"bilbo.baggins@hobbiton.example","use":"sig","n":"n4EPtAOCc9AlkeQHPzHStgAbgs7"#,
            r#"bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wqVwGU_NsYOYL-Qt"#,
            r#"iWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJl"#,
            r#"sde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRh"#,
            r#"uaxwUkRz5iaiQkqgc5gHdrNP5zw","e":"AQAB"}"#,
        ),
        token: concat!(
            "eyJhbGciOiJSUzI1NiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9.",
            "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUg",
            "cm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0",
            "IGJlIHN3ZXB0IG9mZiB0by4.",
            "MRjdkly7_-oTPTS3AXP41iQIGKa80A0ZmTuV5MEaHoxnW2e5CZ5NlKtainoFmKZopdHM1O2U4mwzJdQx996ivp83xuglII7PNDi8",
            "4wnB-BDkoBwA78185hX-Es4JIwmDLJK3lfWRa-XtL0RnltuYv746iYTh_qHRD68BNt1uSNCrUCTJDt5aAE6x8wW1Kt9eRo4QPocS",
            "adnHXFxnt8Is9UzpERV0ePPQdLuW3IS_de3xyIrDaLGdjluPxUAhb6L2aXic1U12podGU0KLUQSE_oI-ZnmKJ3F4uOZDnd6QZWJu",
            "shZ41Axf_fcIe8u9ipH84ogoree7vjbU5y18kDquDg",
        ),
    },
    Published {
        name: "RFC 7520, 4.2",
        algorithm: Algorithm::Ps384,
        key: concat!(
            r#"{"kty":"RSA","kid":"bilbo.baggins@hobbiton.example","use":"sig","n":"n4EPtAOCc9AlkeQHPzHStgAbgs7"#,
            r#"bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wqVwGU_NsYOYL-Qt"#,
            r#"iWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJl"#,
            r#"sde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRh"#,
            r#"uaxwUkRz5iaiQkqgc5gHdrNP5zw","e":"AQAB"}"#,
        ),
        token: concat!(
            "eyJhbGciOiJQUzM4NCIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9.",
            "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUg",
            "cm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0",
            "IGJlIHN3ZXB0IG9mZiB0by4.",
            "cu22eBqkYDKgIlTpzDXGvaFfz6WGoz7fUDcfT0kkOy42miAh2qyBzk1xEsnk2IpN6-tPid6VrklHkqsGqDqHCdP6O8TTB5dDDItl",
            "lVo6_1OLPpcbUrhiUSMxbbXUvdvWXzg-UD8biiReQFlfz28zGWVsdiNAUf8ZnyPEgVFn442ZdNqiVJRmBqrYRXe8P_ijQ7p8Vdz0",
            "TTrxUeT3lm8d9shnr2lfJT8ImUjvAA2Xez2Mlp8cBE5awDzT0qI0n6uiP1aCN_2_jLAeQTlqRHtfa64QQSUmFAAjVKPbByi7xho0",
            "uTOcbH510a6GYmJUAfmWjwZ6oD4ifKo8DYM-X72Eaw",
        ),
    },
    Published {
        name: "RFC 7520, 4.3",
        algorithm: Algorithm::Es512,
        key: concat!(
            r#"{"kty":"EC","kid":"bilbo.baggins@hobbiton.example","use":"sig","crv":"P-521","x":"AHKZLLOsCOzz5c"#,
            r#"Y97ewNUajB957y-C-U88c3v13nmGZx6sYl_oJXu9A5RkTKqjqvjyekWF-7ytDyRXYgCF5cj0Kt","y":"AdymlHvOiLxXkEh"#,
            r#"ayXQnNCvDX4h9htZaCJN34kfmC6pV5OhQHiraVySsUdaQkAgDPrwQrJmbnX9cwlGfP-HqHZR1"}"#,
        ),
        token: concat!(
            "eyJhbGciOiJFUzUxMiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9.",
            "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUg",
            "cm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0",
            "IGJlIHN3ZXB0IG9mZiB0by4.",
            "AE_R_YZCChjn4791jSQCrdPZCNYqHXCTZH0-JZGYNlaAjP2kqaluUIIUnC9qvbu9Plon7KRTzoNEuT4Va2cmL1eJAQy3mtPBu_u_",
            "sDDyYjnAMDxXPn7XrT0lw-kvAD890jl8e2puQens_IEKBpHABlsbEPX6sFY8OcGDqoRuBomu9xQ2",
        ),
    },
    Published {
        name: "RFC 7520, 4.4",
        algorithm: Algorithm::Hs256,
        key: concat!(
            r#"{"kty":"oct","kid":"018c0ae5-4d9b-471b-bfd6-eef314bc7037","use":"sig","alg":"HS256","k":"hJtXIZ2"#,
            r#"uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg"}"#,
        ),
        token: concat!(
            "eyJhbGciOiJIUzI1NiIsImtpZCI6IjAxOGMwYWU1LTRkOWItNDcxYi1iZmQ2LWVlZjMxNGJjNzAzNyJ9.",
            "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUg",
            "cm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0",
            "IGJlIHN3ZXB0IG9mZiB0by4.",
            "s0h6KThzkfBBBkLspW1h84VsJZFTsPPqMDA7g1Md7p0",
        ),
    },
    Published {
        name: "RFC 8037, A.4",
        algorithm: Algorithm::EdDsa,
        key: r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
        token: concat!(
            "eyJhbGciOiJFZERTQSJ9.",
            "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.",
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
    },
];

/// RFC 7515, A.5: signed by nobody.
pub const UNSIGNED: &str = concat!(
    "eyJhbGciOiJub25lIn0.",
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.",
);

/// The modulus of the key of the wrong signatures; its exponent is 65537.
pub const MODULUS: &str = concat!(
    "nS_c1xdaGDe8HDTUM2RRNY0DLf49pnrBjC-k5KPxS9KOqydA9wT2M_uK2CyeoiRsEUY2Tca1p3A1fyMDxrRKpRmeQIjAa1rrXiC0",
    "xKASjyJpTmwMZoX4uBa_dsvGcYcm3CankNU3pwMjKFD6gXqzEZN4xYxqQxO8QJKRuj03i0raVHp7yaqfJ4BPGytiLDRSBfU8BGEA",
    "Eb3CIqPyD1CP5ZooU2GgbjncV-BswTQW0uirtT4xLgjX-nhkADD4FrStPL3GKQsu8Js47ug1gYopIyWNQ6E8er7iV12tiVoq388K",
    "aKb9MDXBfB-asq-aocSGu82iGXNxzpI6v9PgK1kBIQ",
);

/// What the wrong signatures are over, by algorithm.
pub const SIGNED_PKCS1: &str = "eyJhbGciOiJSUzI1NiJ9.e30";
pub const SIGNED_PSS: &str = "eyJhbGciOiJQUzI1NiJ9.e30";

/// RS256, with the padding of PKCS #1 v1.5 as the name says. The first is right.
pub static PKCS1: [(&str, &str); 9] = [
    (
        "right",
        concat!(
            "RgZmfYCz1sqeo8Ei9nudq51aqGKURjOIWwiRAc_kWZf8M8m1Vn8lMCiUgqsHSdH3lh_ska7GHzeB8PSxeiw-NIddXmA9ag6wWXdz",
            "nQ06u80hCf9Q5g-LzyYN-VA0AUQHcOk7QKXRtwLeGBVIWPrznqCgN98Xwrtf6QpDRs0r4_t6L_M3xZMX0rAwh68Qv7uNVyEShr-b",
            "2r-dG9ahE9YuHnSv31_9uv2g-F9wTjt3sWiH1u_YxKpLN8ETvgaaAIqpe261yq-uLGxEVWMjPYldapA7w3Xzsp30t0m0tXQ8BUCK",
            "-xE_oyNIrhlFgUbW1HT_eIqHr9AnHOvqGDEyaYlMgw",
        ),
    ),
    (
        "no NULL behind the hash's name",
        concat!(
            "PjbO7hKU3Kd-OVUAI_2uN-ZERiRfMh4YFaEkvWCsFo-g5Uw-QgEP_s_sy2lTXaSlajlP6-uChkxHP7ZDtLZyxg44aQsXpjnHCId6",
            "V2nm4-33Desyp_zP7MoVmsD4xl1fY2uOe-BTW4PtyQ0YfmO7lUZIe7OqGiqoKSLDsNapaFBr0mHqB_eLvJQkBI2upW-FyhXnX1i8",
            "9YZPYwQOa6wCA5i6P1vYw2TOzJ9XTlNY8mCyy55djN-Hae9rXxjEAtOwxGl6_XEUFYk3we3NTCqS3kLjLmyyML5jd2PFiyJoSTKh",
            "NwGMxdsqiSkXoe3QKdsLaB6_lGJlwl6007q5XuyFPQ",
        ),
    ),
    (
        "a length in two bytes",
        concat!(
            "m52l2DTTfieVLg9B_qGKa9eEaHO7G_s9DpowFvZpXPg3FIncq5ItPGn7KiL3Ipts3n2SMzL0EfhvWFfoaoLuLvjDivMYUT0-nuTM",
            "vseDvwUaaj3naN48_pz-AHW2qq7wsIya1dGQO_6cE-bhu3XrO6OIs2NMU7ZzppiL8QCblKdLknaEo5qSg0BzZ4tih9gBFZojUBld",
            "zsP69Cg-HqckAULY-Rn499s5SgUxo24JZGYKkgiloNRvLQtrwPxeqQ8XKRJhTVGHxeJj13dkbEuKqRKX6vOflexiwGAM0NL1fysy",
            "dEgqec7yX518a-9ezhYhk6lPgEdi38bLficWwqUTkw",
        ),
    ),
    (
        "the name of another hash",
        concat!(
            "DG-t1u74ZA2UyukscnsuBZaonlKmYUsOrpRtah42YG60IC9w3ReVOIZdJKHM8zgGWP1UGXkXa7XfJqfXFc-IJJWuvE93prYlEjbt",
            "-_Am0wFAwjwIyBDFXoj9ARA-TwNLd1s67R3GbJhVFTHqvEfAh_7h8A6unaUrK4FjwrwJ6eZHC_pgE5OghXn2xaumbZjp8EawM94V",
            "R2sfn3-U2y05LYoZd9j9O3A2K1Y7Fjjfz2a7du5JIOcIdPo-VIKUkRpgkAQIjHEBPmXAJZ1rLcHOtkVynPxVUgi0ZcpHQ_yfWM1J",
            "V_566DIKzQPS4Szl6Xu15Vh8W8Yi2qeGBHNbBW0Gsg",
        ),
    ),
    (
        "the bare hash",
        concat!(
            "B27TNEA58K6VnxEx1nd1rFTw0ZPBtpmABQ77Ma5kU1RnLlaqvmwK0PZl-q0uZoz5ozab6uVLIOAZnXHIh-u2mEwQOWWhyZzP3clQ",
            "s1umzkDWwLNeBw_Mz4emgYmfKtbxD6-KY4Yulf3HcpeeoOLiZm2GWQku2x3_GuDUjQfxZvch6pUFoqY0tubxQyE_68nbWAf9xj1r",
            "kmiDwNkQUlts2BOHAobx6PnZ3twS9Th3IhJf1VxzrY3ygeDU4Wv9tXK_Ni38INeJBZt_x9nnr1AFbBmdLXjYkgfpaeGSb-HQ-JKe",
            "wvLgFb9yetW0zim48xZodUdhTCAmYzHFUM4q-TZnmA",
        ),
    ),
    (
        "bytes behind the hash, and less padding (Bleichenbacher 2006)",
        concat!(
            "hz9bd2qoGLpBze4GBmYpAoleubu2u3SNDxjOHOvQYbw_dXeH94sKMJ9trq5ss0wXXQVBh5QWL_Gcmo_Nqaaigk09eytMo6eBlReY",
            "QlxoTmlfnVvflWgPi9peN3InnNZzmFv4LS0ptylqQwsW1h-Gz9Xv5P6LprZrrJK_-7zHvl3VYjWknAdoctBP_MYHoTtxS9-BzXoj",
            "KbiP9Gkkn7nBDLnz7BxtiEhHIKWwXo1_RVH6y1NK-UmAtpL_xNCf2UHiKP1PmzIKYFWoRjkwwjlJ4ZiHjM4MZHZKTbHe0TIDlcO7",
            "T49yW9tMHmi01PXx7UyMFCrHSvdEUp_rPHjv8H7SjA",
        ),
    ),
    (
        "a padding byte that is no FF",
        concat!(
            "miiiHh1GEaYaiW-GNV62u33StSmabeni97AcziZdJxYohyP3AmgDpDFLPoEbvc1xwcPu6UlRX5RU4ihMphC2S8wUodZtFama_qRS",
            "UDNvLFuI-HTAGVpFHSaczrfJrWnHtnrYUcYRJGkcPTdqmuLKbyieEv-9DAezSde2EPao1c-W9CsxKPUNqBNaMO2HK8qeMn_kgqON",
            "u41doRpCdUjeXmseHwM-VJ_v88ZzD591z0459H7rePJ6ay1YIKbjNmLsWf4FXA392hj9z2OppcccbLJWWGLdVT1xX4lRAc58Skx2",
            "GsLdjEw6iu12jfrm_ATtZOGAvU1YnEG5iXGOett_4A",
        ),
    ),
    (
        "block type 2",
        concat!(
            "C3UYbQbh7Tmm_JRi-c5zmbXgKHl_dBni9XJKeyqC73TQpbaLjSF5IAeVzeQx1AqGymkRh1AC925FmF2LdOIpsrl2ekItP-0KyWZ1",
            "iPMr7i4Gzu-CrO3r3AHduNamz46a6DPVE9JtszNWELq7R2psTkbvcGZM7ZVXfrDUvX-al9o9k3NIBmx27RMUOeByNCZZAlAKrQUG",
            "nNOjIs9J339IITIugaWhL_oGxsvVmkgoaNyQUwwgyERuQIGK3SgMumTWjd_rtkAjkggnxLvg6_g_B2RGV7Wo9UuLWN8Ewibpy59l",
            "JIPvqaIthAQFmKdEpisUbY80oVYzz1BKmbGjFEp_dA",
        ),
    ),
    (
        "block type 0",
        concat!(
            "TsrnMqCrCn_wbyG7dJ4sSr8Q83bDyvKVLv_DW9IXMD5ZhXHgzoK-WEC8_fW0loa4TznrAVh0K4C-4NDGjjmWt4JWYNkeCDRcBENy",
            "PCdDI7sgbvBcxg30HbmuYADuzDRr8y9N-BN0BclgCbSg0qAmM99yeUqeaEv2DgyCPhmjtpw8Dhu6Km0FCH9CIaRF3uLUs5rrlpiN",
            "s4tXlf9nRcNiws6IYmNpnO-9Mwqtf2BHwTt29bE7Sj-T5P0r8Z2izvZZdensC5eD_SfwquI7Cp97oBaRm_tI2RNRlivVNiujeIku",
            "gwpOJfzIDCA3SbkqpUmJBXKcV4OZg7O0E_8CzWswug",
        ),
    ),
];

/// PS256, with the padding of PSS as the name says. The first is right.
pub static PSS: [(&str, &str); 7] = [
    (
        "right",
        concat!(
            "NtX0wfcssME_BqmvxKArxKPN8zk98tVJJ2s4T4-w73yL5RMxmMy5QkPVJ5UI832nO-LHSjrpKUwZGxGD0dpQ4Lc6exHIj82iArxn",
            "WyEu1RmW0rEgdFb6iEJfKyo66PEfam8JwfsnGu_xyq7Bwn4Si-HQAnbvtkT2o18V7SCA4_cRczHn5wAlp2c1RXtrT6Ucx3J9SkXf",
            "J3q73RIgqCyUonF97XNDk-2-Oe2KfunNrrCEQBqlQB_UT3iSY0VW-bToC-uYzczzXemsPuVubFvmpriYW5wBttw6ZbFFT5UdcCLl",
            "teeBXydMQFJoYpw53MRs0OBaQQrqhu3NJYflpUyBkQ",
        ),
    ),
    (
        "no salt",
        concat!(
            "kHaafif8HFFhr-z8wCiDYgq9d6ekyG5jAC-ePB58fpt7xBkEx56q--2GX34R2B-KW5gD5T5lZdyTe3WJwYehWW73HlxpgToRai2_",
            "o3aIUZmShdpMECVvSJ4jFnwNY5DeoGmVjzlWD9pC3zTKW-E1dITrMAqYVBa8D58dFjqonvhXw-erN6GwBOi82K6PGfryhytCgyMN",
            "8XYMy3wK-j0MkM-vJJV3c6wCjd_P_0V6-UDUIrFxLZO5Lfh0Ak_5cogjrmNDxoXXDRuqaX4SKVlTnR6jAJm8iyF-bN8ZmLNZfYwq",
            "b9u--TIYmT2_bswMEk0TUY2KCkuUMLwhwL9RuyseaA",
        ),
    ),
    (
        "a salt of 20 bytes",
        concat!(
            "Cfd-XbcuFLsEHUfEJBk_CvsVQwrpyi2UGbif1_xfy2Xyss73MeF1GNa6wIo4K3kxKw1UKpF5d6mTFsPI5gZSqOrhWjYQi0KJcc2M",
            "1s_kL85ZYzHE1LJHHCveFqVfWb4DwbcPcFSNRVPMS__6cG1g4Hzqac80l9VI7cjp8BuvkpEbfEwwosmOrXHBH5S_8GEBG4AXKfdX",
            "j_wipFBiWaAYHenfbxK--L3gSNPRRiBQ5dYZsyHeFFyCnIG3rg9f8OClTtSo8pnQ5lOtF6t5-px_KuLAKgWIDpb0vQXnXRU4BZjJ",
            "zAPafeGTFKylZflmWX83_8xZbrkjQ97Al05XhzPyIQ",
        ),
    ),
    (
        "a salt of 64 bytes",
        concat!(
            "RRGCOW3y594MPpRZvBGmuSYq44IWcwRDDpozzFLTju4Cd4ibosso5y8A2xQs2A9uWCaBw_1ihvFJGCQUQQtqG_2iMa_n7AZ9tEBW",
            "ko2NzC8ziZEbQAiasz3_XCNaFvmaECxg8-SsSgnOhYTG3FrRY5FofzeKehVUME2Kd0eapj_IITnDXgTrIIUPDJl1wzEtKR1NFXRn",
            "2O58hLeeo187ssNhulI1ri_0Ws1eyKWo_hMHBDl008rjH1J4jXRzJj-N0RpPQnICUcJIbOuFCdmnO8SZ1JM_m7lWQQlF2-sjf4Pd",
            "Hqcfb2a70tQ6O_3qEb44pF7mX7vAm8xCklzplEOYWQ",
        ),
    ),
    (
        "another last byte",
        concat!(
            "U08hXCoh0ELqtp1cRGDZiu5yGsefeQ94U8DTQqFiEux1dLy-3EKJ2SBZY5Su6gpfxF3Xjc5UPGKHZOR0c5p_DUYxXTcUMyp4LMA8",
            "LAakl5tri6KGiP0PltWhRiEWoNaWMYiYrxSgRU7dz1mvONkzuGEt79lb5XWiMKjV0wO4oeG_6bYLQ7q4LGh-IkUZyYcbeO0h6gBG",
            "Sc6PouJwWH06doEReUl_T9PAHbOalfpTds2sjiHa00w2tfX1ZbLmiseKoLyQ8ph4jaQ6JRniXDfO8ETSDXgC0PxSHf-gHfcQYgjU",
            "TfDR7uTRjB8MMbjqdeanRCT9OVqRJOcz_KJwk6U5pg",
        ),
    ),
    (
        "another byte before the salt",
        concat!(
            "G-dLkM2DjKs-p4IDqiPgCIh93GZfFH60_hU3ukBfZM2N5Vw-i6--BkjXx3rkD-rykR1vkP8NYyuLUOCkBI_CyhoeZu8CC-xXGwjK",
            "rjMo_gHEGg-_AQB06OvTRfpIUp1JwOnjd1h2k14VezQxBN3CfO6pbnNy9vgBNaR8ul1cUq6AB-U8UUXIT1PKi_oBECGedgjezqRa",
            "GABQPUzWk8VIT4Wlf8YbA5xDb8vGMm7hztoB5c_4ibneKpSuo9XIM-dEk2MrjZ_06COsEyZaU5VYvJY8yy7XQEnWlJe1kZDI3Hg2",
            "a7nV51NsCfpv9ha8quABvdmKrwUB5gU4PoKG9myZCA",
        ),
    ),
    (
        "a mask by SHA-1",
        concat!(
            "h2-EzZ1VOc7wWvUh2HbMF199oGU2qwX7pO2xGrPq2GeKHPiF0DCQQX1Rx7w5GtT3BLPwkeW1DaTHwmIryV6KKPnJQzT432I0gGNp",
            "1IdSn7D157sWSZDwrV82BbsGg7-iRFmd8OzCQtgsqoN55YssIOIYlZZe_zXKmsXMHHaR-tGid_7HWmRhQtusrB6IymH96k2Sa50E",
            "W5VnysXSW18QeGTK6OcHPf0O5LcSDi8CmPxdLUo-Ix-FvWmqcinjv7u9OAw1ifCy2oLgJdZooqCPH3lfs7hXrWDuwMa63jXh309-",
            "RFuAl7Uu6Q4PIjn28RQuoHveI7MkbFzGx9AFA16gNw",
        ),
    ),
];
