//! JSON, read so that it has one meaning: no member twice, nothing after the end, and not deeper than anybody needs.
//!
//! Of two members with one name some readers take the first and some the last (RFC 8259, section 4): what is checked
//! here would then not be what a server goes by. So such an object is refused, however deep it is.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How many objects and lists may be inside one another, the outermost included.
pub const MOST_DEPTH: usize = 16;
/// The longest name of anything: a subject, a key, a token, a level, a method.
pub const MOST_TEXT_BYTES: usize = 256;

/// Reads bytes that are one JSON object and nothing else. How many there may be is for the caller to say.
pub fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { levels: MOST_DEPTH }.deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    match value {
        Value::Object(members) => Some(members),
        _ => None,
    }
}

/// A member that is there and not what it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit;

/// A member that is text of at most so many bytes, where it is there.
pub fn text<'a>(members: &'a Map<String, Value>, name: &str, most: usize) -> Result<Option<&'a str>, Unfit> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if text.len() <= most => Ok(Some(text)),
        Some(_) => Err(Unfit),
    }
}

/// What reads one value, and how many levels of nesting are left to it.
#[derive(Clone, Copy)]
struct Strict {
    levels: usize,
}

impl Strict {
    fn inside<E: Error>(self) -> Result<Self, E> {
        let levels = self.levels.checked_sub(1).ok_or_else(|| E::custom("too deep"))?;
        Ok(Strict { levels })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("no number"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let inside = self.inside::<A::Error>()?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(inside)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let inside = self.inside::<A::Error>()?;
        let mut members = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            let value = object.next_value_seed(inside)?;
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a member is there twice"));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn nested(levels: usize) -> String {
        format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels))
    }

    #[test]
    fn what_is_plain_is_read_as_it_is() {
        let text = r#" { "a" : [1, -2, 0.5, true, null, "x\u00e9"], "b" : { "a" : {} }, "c" : 18446744073709551615 } "#;
        let expected = json!({"a": [1, -2, 0.5, true, null, "xé"], "b": {"a": {}}, "c": u64::MAX});
        assert_eq!(object(text.as_bytes()), expected.as_object().cloned());
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"x":{"a":1,"b":2,"a":1}}"#,
            r#"{"x":[{"y":[{"a":1,"a":2}]}]}"#,
            r#"{"a":1}{"a":1}"#,
            r#"{"a":1}x"#,
            "{\"a\":1}\0",
            r#"{"a":1,}"#,
            r#"{"a":01}"#,
            r#"{"a":1e400}"#,
            r#"{"a":NaN}"#,
            r#"{"a":"\ud800"}"#,
            r#"{'a':1}"#,
            r#"{a:1}"#,
            r#"{"a":1 /* so it is */}"#,
            "\u{feff}{}",
            "",
            "null",
            "1",
            "[]",
            "\"{}\"",
            "{",
        ] {
            assert_eq!(object(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), None, "no UTF-8");
        assert_eq!(object(b"{\"\xc0\xaf\":1}"), None, "no UTF-8 in a name");
        assert_eq!(object(b"{\"a\":\"\xed\xa0\x80\"}"), None, "half a surrogate pair");
    }

    #[test]
    fn the_sixteenth_level_is_the_last() {
        assert!(object(nested(MOST_DEPTH).as_bytes()).is_some());
        assert_eq!(object(nested(MOST_DEPTH + 1).as_bytes()), None);
        let lists = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(object(lists(MOST_DEPTH - 1).as_bytes()).is_some());
        assert_eq!(object(lists(MOST_DEPTH).as_bytes()), None);
        assert_eq!(object("{\"a\":".repeat(100_000).as_bytes()), None, "a bomb does not reach the stack");
    }

    #[test]
    fn text_is_short_text_or_unfit() {
        let members = json!({"a": "x", "long": "x".repeat(257), "n": 1, "null": null}).as_object().cloned().unwrap();
        for (name, expected) in
            [("a", Ok(Some("x"))), ("none", Ok(None)), ("long", Err(Unfit)), ("n", Err(Unfit)), ("null", Err(Unfit))]
        {
            assert_eq!(text(&members, name, MOST_TEXT_BYTES), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn garbage_harms_nobody(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = object(&bytes);
        }

        #[test]
        fn what_it_reads_is_what_others_read(text in "\\{(\"[ab]\":(1|\\{\\}|\\[1\\]|\"x\"),?){0,4}\\}") {
            if let Some(members) = object(text.as_bytes()) {
                prop_assert_eq!(Value::Object(members), serde_json::from_str::<Value>(&text).unwrap());
            }
        }
    }
}
