//! A JSON Schema (2020-12) of the configuration, for editors: written from the vocabulary.

use serde_json::{Map, Value, json};
use toml::de::DeValue;

use super::vocabulary::{Absent, Key, Kind, ROOT, Table};

/// The schema of the whole file.
pub fn schema() -> Value {
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://steadfast.example/steadfast.schema.json",
        "title": "steadfast.toml",
    });
    merge(&mut schema, of_table(&ROOT));
    schema
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn of_table(table: &Table) -> Value {
    let properties: Map<String, Value> = table.keys.iter().map(|key| (key.name.to_owned(), of_key(key))).collect();
    let required: Vec<&str> =
        table.keys.iter().filter(|key| key.absent == Absent::Required).map(|key| key.name).collect();
    json!({
        "type": "object", "description": table.doc, "properties": properties, "required": required,
        "additionalProperties": false,
    })
}

fn of_key(key: &Key) -> Value {
    let mut schema = match key.kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Duration | Kind::LongerThanZero => json!({ "type": "string", "pattern": "^[0-9]+ *(ms|s|m|h|d)$" }),
        Kind::Size { .. } => json!({ "type": "string", "pattern": "^[0-9]+ *(B|KiB|MiB|GiB|KB|MB|GB)$" }),
        Kind::Percent => json!({ "type": "string", "pattern": "^(100|[0-9]{1,2}) *%$" }),
        Kind::Word(words) => json!({ "enum": words() }),
        Kind::IntegerList { min, max } => {
            json!({ "type": "array", "items": { "type": "integer", "minimum": min, "maximum": max } })
        }
        Kind::TextList => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::TextMap => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Kind::Table(table) => of_table(table),
        Kind::Tables(table) => json!({ "type": "array", "items": of_table(table) }),
    };
    schema["description"] = json!(key.doc);
    match key.absent {
        Absent::Default(text) => schema["default"] = to_json(text),
        Absent::Nothing(text) if !text.is_empty() => schema["examples"] = json!([to_json(text)]),
        _ => {}
    }
    schema
}

/// A TOML value as JSON.
fn to_json(text: &str) -> Value {
    fn convert(value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => json!(text),
            DeValue::Boolean(flag) => json!(flag),
            DeValue::Integer(number) => json!(number.as_str().replace('_', "").parse::<i64>().ok()),
            DeValue::Array(items) => items.iter().map(|item| convert(item.get_ref())).collect(),
            DeValue::Table(table) => {
                let pairs = table.iter().map(|(name, value)| (name.get_ref().to_string(), convert(value.get_ref())));
                Value::Object(pairs.collect())
            }
            DeValue::Float(_) | DeValue::Datetime(_) => Value::Null,
        }
    }
    DeValue::parse(text).map_or(Value::Null, |value| convert(value.get_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_says_types_defaults_and_what_is_required() {
        let schema = schema();
        assert_eq!(schema["required"], json!(["listener", "route"]));
        let pool = &schema["properties"]["pool"]["items"]["properties"];
        assert_eq!(pool["balance"]["default"], "p2c");
        assert_eq!(pool["server"]["items"]["required"], json!(["name", "address"]));
        assert_eq!(schema["properties"]["process"]["properties"]["max_connections"]["default"], 100_000);
    }
}
