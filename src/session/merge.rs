//! The data of a session: a JSON object, changed by merge patches (RFC 7396), within bounds.

use serde_json::{Map, Value};

/// Keys of a session's object.
pub const MOST_KEYS: usize = 256;
/// Objects and lists in each other.
pub const MOST_DEPTH: usize = 16;
/// Bytes of one patch.
pub const MOST_PATCH_BYTES: usize = 16 * 1024;

/// Data that is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Oversized {
    #[error("the session's data is too large")]
    Bytes,
    #[error("the session's data has too many keys")]
    Keys,
    #[error("the session's data is too deep")]
    Depth,
    #[error("the session's data cannot be read")]
    Unreadable,
}

fn object(data: &str) -> Result<Map<String, Value>, Oversized> {
    serde_json::from_str(data).map_err(|_| Oversized::Unreadable)
}

/// The data after a replacement and a patch.
pub fn apply(
    data: &str,
    replace: Option<&Map<String, Value>>,
    patch: Option<&Map<String, Value>>,
) -> Result<Box<str>, Oversized> {
    let mut target = match (replace, patch) {
        (None, None) => return Ok(data.into()),
        (Some(whole), _) => whole.clone(),
        (None, Some(_)) => object(data)?,
    };
    if let Some(patch) = patch {
        if depth_of(patch) > MOST_DEPTH {
            return Err(Oversized::Depth);
        }
        merge(&mut target, patch);
    }
    if target.len() > MOST_KEYS {
        return Err(Oversized::Keys);
    }
    if depth_of(&target) > MOST_DEPTH {
        return Err(Oversized::Depth);
    }
    Ok(serde_json::to_string(&target).map_err(|_| Oversized::Unreadable)?.into())
}

/// The data with these keys only; none: all.
pub fn only(data: &str, keys: Option<&[Box<str>]>) -> Result<Box<str>, Oversized> {
    let Some(keys) = keys else { return Ok(data.into()) };
    let mut object = object(data)?;
    object.retain(|key, _| keys.iter().any(|kept| **kept == **key));
    Ok(serde_json::to_string(&object).map_err(|_| Oversized::Unreadable)?.into())
}

/// Whether the data is within what a session may have.
pub fn check(data: &str, most_bytes: usize) -> Result<(), Oversized> {
    if data.len() > most_bytes { Err(Oversized::Bytes) } else { Ok(()) }
}

/// Null takes away, objects merge, everything else replaces.
fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.shift_remove(key);
            }
            Value::Object(patch) => {
                let inner = target.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
                if !inner.is_object() {
                    *inner = Value::Object(Map::new());
                }
                if let Value::Object(inner) = inner {
                    merge(inner, patch);
                }
            }
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

fn depth_of(object: &Map<String, Value>) -> usize {
    1 + object.values().map(depth).max().unwrap_or(0)
}

/// serde_json reads no more than 128 levels, so this ends.
fn depth(value: &Value) -> usize {
    match value {
        Value::Object(object) => depth_of(object),
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(data: &str, patch: &Value) -> Result<String, Oversized> {
        apply(data, None, patch.as_object()).map(String::from)
    }

    #[test]
    fn patches_of_the_rfc() {
        for (data, patch, after) in [
            (r#"{"a":"b"}"#, json!({"a":"c"}), r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, json!({"b":"c"}), r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, json!({"a":null}), "{}"),
            (r#"{"a":"b","b":"c"}"#, json!({"a":null}), r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, json!({"a":"c"}), r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, json!({"a":["b"]}), r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, json!({"a":{"b":"d","c":null}}), r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, json!({"a":[1]}), r#"{"a":[1]}"#),
            (r#"{"e":null}"#, json!({"a":1}), r#"{"e":null,"a":1}"#),
            ("{}", json!({"a":{"bb":{"ccc":null}}}), r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(patched(data, &patch).unwrap(), after, "{data} {patch}");
        }
    }

    #[test]
    fn bounds_hold() {
        let many: Map<String, Value> = (0..=MOST_KEYS).map(|number| (number.to_string(), json!(1))).collect();
        assert_eq!(apply("{}", None, Some(&many)), Err(Oversized::Keys));
        let nested = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }));
        assert!(patched("{}", &nested(MOST_DEPTH)).is_ok());
        assert_eq!(patched("{}", &nested(MOST_DEPTH + 1)), Err(Oversized::Depth));
        assert_eq!(check("12345", 4), Err(Oversized::Bytes));
        assert_eq!(patched("[]", &json!({"a": 1})), Err(Oversized::Unreadable));
    }

    #[test]
    fn what_is_carried_is_only_what_was_named() {
        let data = r#"{"cart":1,"admin":true,"theme":"dark"}"#;
        let keys = ["theme".into(), "cart".into()];
        assert_eq!(&*only(data, Some(&keys)).unwrap(), r#"{"cart":1,"theme":"dark"}"#);
        assert_eq!(&*only(data, Some(&[])).unwrap(), "{}");
        assert_eq!(&*only(data, None).unwrap(), data);
    }
}
