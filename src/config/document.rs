//! The file as it was written: parsed, checked against the vocabulary, and read key by key.
//!
//! Checking and reading are two passes over the same spanned tree. The first reports everything that is wrong; so the
//! second may take a default wherever a value cannot be used, without reporting it again.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problems;
use super::vocabulary::{self, Absent, Key, Kind, Table};

/// A value with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// One table of the file, with the vocabulary's word on it. It may be absent: then every key has its default.
#[derive(Clone)]
pub struct Section<'d> {
    table: Option<&'d DeTable<'d>>,
    vocabulary: &'static Table,
    pub span: Range<usize>,
}

/// Checks a whole document against the vocabulary.
pub fn check(document: &DeTable<'_>, problems: &Problems) {
    check_table(document, &vocabulary::ROOT, 0..0, &[], problems);
}

fn check_table(
    table: &DeTable<'_>,
    words: &'static Table,
    span: Range<usize>,
    above: &[&'static Table],
    problems: &Problems,
) {
    for (name, value) in table.iter() {
        match words.key(name.get_ref()) {
            Some(key) => check_value(key, value, &[above, &[words]].concat(), problems),
            None => problems.error(name.span(), unknown(name.get_ref(), words), hint(name.get_ref(), words, above)),
        }
    }
    for key in words.keys.iter().filter(|key| key.absent == Absent::Required && table.get(key.name).is_none()) {
        let message = if words.path.is_empty() {
            format!("there is no `{}`", bracketed(key))
        } else {
            format!("`{}` is missing in `{}`", key.name, words.path)
        };
        problems.error(span.clone(), message, Some(key.doc.to_owned()));
    }
}

fn bracketed(key: &Key) -> String {
    match key.kind {
        Kind::Tables(_) => format!("[[{}]]", key.name),
        Kind::Table(_) => format!("[{}]", key.name),
        _ => key.name.to_owned(),
    }
}

fn unknown(name: &str, words: &Table) -> String {
    let place = if words.path.is_empty() { "the file".to_owned() } else { format!("`{}`", words.path) };
    format!("`{name}` is no key of {place}")
}

/// The nearest known key; or the table that the key belongs to.
fn hint(name: &str, words: &'static Table, above: &[&'static Table]) -> Option<String> {
    if let Some(owner) = above.iter().rev().find(|table| !table.path.is_empty() && table.key(name).is_some()) {
        return Some(format!("`{name}` belongs to `{}`: move it above `{}`", heading(owner), heading(words)));
    }
    let near = words.keys.iter().map(|key| (strsim::damerau_levenshtein(name, key.name), key.name));
    let nearest = near.min().filter(|(distance, known)| *distance <= known.len().max(name.len()) / 3 + 1);
    if let Some((_, known)) = nearest {
        return Some(format!("did you mean `{known}`?"));
    }
    let elsewhere = vocabulary::tables().into_iter().find(|table| table.key(name).is_some() && !table.path.is_empty());
    elsewhere.map(|table| format!("`{name}` is a key of `{}`", table.path))
}

/// A table as it is written: lists of tables have double brackets.
fn heading(table: &'static Table) -> String {
    let is_list = |key: &&Key| matches!(key.kind, Kind::Tables(listed) if std::ptr::eq(listed, table));
    let listed = vocabulary::tables().iter().any(|holder| holder.keys.iter().any(|key| is_list(&key)));
    if listed { format!("[[{}]]", table.path) } else { format!("[{}]", table.path) }
}

fn check_value(key: &Key, value: &Spanned<DeValue<'_>>, above: &[&'static Table], problems: &Problems) {
    match (key.kind, value.get_ref()) {
        (Kind::Table(words), DeValue::Table(table)) => check_table(table, words, value.span(), above, problems),
        (Kind::Tables(words), DeValue::Array(tables)) => {
            for table in tables.iter() {
                match table.get_ref() {
                    DeValue::Table(inner) => check_table(inner, words, table.span(), above, problems),
                    other => problems.error(table.span(), wrong_type(key, other), None),
                }
            }
            if tables.is_empty() && key.absent == Absent::Required {
                problems.error(value.span(), format!("`{}` is empty", key.name), Some(key.doc.to_owned()));
            }
        }
        (Kind::Tables(_), DeValue::Table(_)) => {
            let help = format!("write `[[{}]]`: there may be several", key.name);
            problems.error(value.span(), format!("`{}` is a list of tables", key.name), Some(help));
        }
        (_, scalar) => {
            if let Err((message, help)) = check_scalar(key, scalar) {
                problems.error(value.span(), message, help);
            }
        }
    }
}

fn check_scalar(key: &Key, value: &DeValue<'_>) -> Result<(), (String, Option<String>)> {
    let wrong = || (wrong_type(key, value), example(key));
    let text = || value.as_str().ok_or_else(wrong);
    match key.kind {
        Kind::Text => text().map(drop),
        Kind::Bool => value.as_bool().map(drop).ok_or_else(wrong),
        Kind::Integer { min, max } => {
            let number = integer(value).ok_or_else(wrong)?;
            let range = || (format!("`{}` must be from {min} to {max}", key.name), example(key));
            (min..=max).contains(&number).then_some(()).ok_or_else(range)
        }
        Kind::Duration | Kind::LongerThanZero => {
            let text = text()?;
            let wrong = || {
                (format!("\"{text}\" is no duration"), Some("a number with ms, s, m, h or d, as \"30s\"".to_owned()))
            };
            let duration = parse_duration(text).ok_or_else(wrong)?;
            let zero = duration.is_zero() && matches!(key.kind, Kind::LongerThanZero);
            let nothing_works = || (format!("`{}` must be longer than 0", key.name), example(key));
            if zero { Err(nothing_works()) } else { Ok(()) }
        }
        Kind::Size { min, max } => {
            let text = text()?;
            let wrong = || {
                (format!("\"{text}\" is no size"), Some("a number with B, KiB, MiB or GiB, as \"64KiB\"".to_owned()))
            };
            let size = parse_size(text).ok_or_else(wrong)?;
            let range = || (format!("`{}` must be from {min} to {max} bytes", key.name), example(key));
            (min..=max).contains(&size).then_some(()).ok_or_else(range)
        }
        Kind::Percent => {
            let text = text()?;
            let wrong = || (format!("\"{text}\" is no percentage"), Some("0% to 100%, as \"50%\"".to_owned()));
            parse_percent(text).map(drop).ok_or_else(wrong)
        }
        Kind::Word(words) => {
            let text = text()?;
            let words = words();
            if words.contains(&text) {
                return Ok(());
            }
            let near = words.iter().min_by_key(|word| strsim::damerau_levenshtein(text, word));
            let near = near.filter(|word| strsim::damerau_levenshtein(text, word) <= 2);
            let all = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
            let help =
                near.map_or_else(|| format!("one of {all}"), |word| format!("did you mean \"{word}\"? (one of {all})"));
            Err((format!("\"{text}\" is no value of `{}`", key.name), Some(help)))
        }
        Kind::TextList => {
            let list = value.as_array().ok_or_else(wrong)?;
            list.iter().all(|item| item.get_ref().is_str()).then_some(()).ok_or_else(wrong)
        }
        Kind::IntegerList { min, max } => {
            let list = value.as_array().ok_or_else(wrong)?;
            let numbers: Option<Vec<i64>> = list.iter().map(|item| integer(item.get_ref())).collect();
            let all_fit = numbers.ok_or_else(wrong)?.iter().all(|number| (min..=max).contains(number));
            let range = || (format!("`{}` has numbers from {min} to {max}", key.name), example(key));
            all_fit.then_some(()).ok_or_else(range)
        }
        Kind::TextMap => {
            let map = value.as_table().ok_or_else(wrong)?;
            map.iter().all(|(_, value)| value.get_ref().is_str()).then_some(()).ok_or_else(wrong)
        }
        Kind::Table(_) | Kind::Tables(_) => Err(wrong()),
    }
}

fn wrong_type(key: &Key, value: &DeValue<'_>) -> String {
    let wanted = match key.kind {
        Kind::Text | Kind::Word(_) => "a string",
        Kind::Bool => "true or false",
        Kind::Integer { .. } => "a whole number",
        Kind::Duration | Kind::LongerThanZero => "a duration in quotes",
        Kind::Size { .. } => "a size in quotes",
        Kind::Percent => "a percentage in quotes",
        Kind::TextList => "a list of strings",
        Kind::IntegerList { .. } => "a list of whole numbers",
        Kind::TextMap => "a table of strings",
        Kind::Table(_) => "a table",
        Kind::Tables(_) => "a list of tables",
    };
    format!("`{}` is {wanted}, not {}", key.name, value.type_str())
}

fn example(key: &Key) -> Option<String> {
    match key.absent {
        Absent::Default(text) => Some(format!("the default is `{} = {text}`", key.name)),
        Absent::Nothing(text) if !text.is_empty() => Some(format!("for example `{} = {text}`", key.name)),
        _ => None,
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
}

/// Reads "250ms", "30s", "10m", "8h", "1d".
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).filter(|millis| *millis <= 1_000 * 86_400_000 * 366).map(Duration::from_millis)
}

/// Reads "0B", "64KiB", "10MiB" and the decimal units.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(bytes).filter(|bytes| *bytes <= 1 << 50)
}

/// Reads "0%" to "100%" as 0 to 1.
pub fn parse_percent(text: &str) -> Option<f64> {
    let number: u32 = text.strip_suffix('%')?.trim().parse().ok()?;
    (number <= 100).then(|| f64::from(number) / 100.0)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|byte: char| !byte.is_ascii_digit())?;
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

impl<'d> Section<'d> {
    /// The whole file.
    pub fn root(document: &'d DeTable<'d>) -> Self {
        Section { table: Some(document), vocabulary: &vocabulary::ROOT, span: 0..0 }
    }

    fn known(&self, name: &str) -> &'static Key {
        self.vocabulary.key(name).expect("the code asks only for keys of the vocabulary")
    }

    fn written(&self, name: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.table?.get(name)
    }

    /// Whether the file has this table.
    pub fn is_written(&self) -> bool {
        self.table.is_some()
    }

    /// Where a key is, or the table that it is missing in.
    pub fn place(&self, name: &str) -> Range<usize> {
        self.written(name).map_or(self.span.clone(), Spanned::span)
    }

    /// Whether the key is in the file.
    pub fn has(&self, name: &str) -> bool {
        self.written(name).is_some()
    }

    /// The value as written, or else the default.
    fn value<T>(&self, name: &str, read: impl Fn(&DeValue<'_>) -> Option<T>) -> Option<T> {
        let key = self.known(name);
        let usable = |value: &DeValue<'_>| check_scalar(key, value).is_ok().then(|| read(value)).flatten();
        let written = self.written(name).and_then(|value| usable(value.get_ref()));
        written.or_else(|| match key.absent {
            Absent::Default(text) => DeValue::parse(text).ok().and_then(|value| read(value.get_ref())),
            _ => None,
        })
    }

    /// A string, if there is one.
    pub fn text(&self, name: &str) -> Option<Located<String>> {
        let value = self.value(name, |value| value.as_str().map(str::to_owned))?;
        Some(Located { value, span: self.place(name) })
    }

    /// A word of a closed vocabulary.
    pub fn word<T>(&self, name: &str, from_word: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.value(name, |value| value.as_str().and_then(&from_word))
    }

    /// A flag; `false` where it has no default.
    pub fn flag(&self, name: &str) -> bool {
        self.value(name, |value| value.as_bool()).unwrap_or_default()
    }

    /// A whole number within the bounds of its key.
    pub fn number<T: TryFrom<i64> + Default>(&self, name: &str) -> T {
        self.value(name, |value| integer(value).and_then(|number| T::try_from(number).ok())).unwrap_or_default()
    }

    /// A duration.
    pub fn duration(&self, name: &str) -> Duration {
        self.value(name, |value| value.as_str().and_then(parse_duration)).unwrap_or_default()
    }

    /// A duration for which zero means none.
    pub fn duration_if_any(&self, name: &str) -> Option<Duration> {
        Some(self.duration(name)).filter(|duration| !duration.is_zero())
    }

    /// A size in bytes.
    pub fn size(&self, name: &str) -> u64 {
        self.value(name, |value| value.as_str().and_then(parse_size)).unwrap_or_default()
    }

    /// A share from 0 to 1.
    pub fn percent(&self, name: &str) -> f64 {
        self.value(name, |value| value.as_str().and_then(parse_percent)).unwrap_or_default()
    }

    /// A list of strings, each with its place.
    pub fn texts(&self, name: &str) -> Vec<Located<String>> {
        let read = |value: &DeValue<'_>| {
            let items = value.as_array()?.iter();
            Some(
                items
                    .filter_map(|item| Some(Located { value: item.get_ref().as_str()?.to_owned(), span: item.span() }))
                    .collect(),
            )
        };
        self.value(name, read).unwrap_or_default()
    }

    /// A list of whole numbers within the bounds of its key.
    pub fn numbers<T: TryFrom<i64>>(&self, name: &str) -> Vec<T> {
        let number = |value: &DeValue<'_>| integer(value).and_then(|number| T::try_from(number).ok());
        let read = |value: &DeValue<'_>| value.as_array()?.iter().map(|item| number(item.get_ref())).collect();
        self.value(name, read).unwrap_or_default()
    }

    /// Whether the key is there, with an empty list.
    pub fn is_empty_list(&self, name: &str) -> bool {
        self.written(name).and_then(|value| value.get_ref().as_array()).is_some_and(|list| list.is_empty())
    }

    /// Names and texts, with the place of each name.
    pub fn text_map(&self, name: &str) -> Vec<(Located<String>, String)> {
        let read = |value: &DeValue<'_>| {
            let pairs = value.as_table()?.iter();
            let pairs = pairs.filter_map(|(name, value)| {
                let name = Located { value: name.get_ref().to_string(), span: name.span() };
                Some((name, value.get_ref().as_str()?.to_owned()))
            });
            Some(pairs.collect())
        };
        self.value(name, read).unwrap_or_default()
    }

    /// A table of this one; absent, every key of it has its default.
    pub fn section(&self, name: &str) -> Section<'d> {
        let Kind::Table(vocabulary) = self.known(name).kind else { unreachable!("`{name}` is declared as a table") };
        let table = self.written(name).and_then(|value| value.get_ref().as_table());
        Section { table, vocabulary, span: self.place(name) }
    }

    /// The tables of a list.
    pub fn sections(&self, name: &str) -> Vec<Section<'d>> {
        let Kind::Tables(vocabulary) = self.known(name).kind else { unreachable!("`{name}` is declared as tables") };
        let tables = self.written(name).and_then(|value| value.get_ref().as_array()).map(|list| list.iter());
        let tables = tables.into_iter().flatten().filter_map(|item| Some((item.get_ref().as_table()?, item.span())));
        tables.map(|(table, span)| Section { table: Some(table), vocabulary, span }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_sizes_and_percentages() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("8h"), Some(Duration::from_secs(28_800)));
        for wrong in ["", "s", "5", "-1s", "1.5s", "5 weeks", "99999999999999999999s", "99999999d"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
        assert_eq!(
            (parse_size("64KiB"), parse_size("0B"), parse_size("1 MiB")),
            (Some(65_536), Some(0), Some(1 << 20))
        );
        assert_eq!((parse_size("64"), parse_size("KiB"), parse_size("1TiB")), (None, None, None));
        assert_eq!((parse_percent("20%"), parse_percent("101%"), parse_percent("20")), (Some(0.2), None, None));
    }

    /// Every default in the vocabulary is a value that its own key accepts.
    #[test]
    fn defaults_and_examples_are_valid() {
        for table in vocabulary::tables() {
            for key in table.keys {
                let (Absent::Default(text) | Absent::Nothing(text)) = key.absent else { continue };
                if text.is_empty() {
                    continue;
                }
                let problems = Problems::default();
                check_value(key, &DeValue::parse(text).expect(text), &[], &problems);
                assert!(!problems.has_errors(), "{}.{}: {:?}", table.path, key.name, problems.into_sorted());
            }
        }
    }
}
