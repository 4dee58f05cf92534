//! The floors of ARCHITECTURE.md, executable: which module may import which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Modules by floor; a module may import every lower floor, and on its own floor what the second part names.
const FLOORS: &[&[(&str, &[&str])]] = &[
    &[("names", &[]), ("clock", &[]), ("keys", &[]), ("tasks", &[]), ("metrics", &["names"])],
    &[
        ("routing", &[]),
        ("balance", &[]),
        ("affinity", &["balance", "headers", "recent"]),
        ("health", &[]),
        ("headers", &[]),
        ("imbalance", &[]),
        ("recent", &["balance"]),
        ("rate", &["recent"]),
        ("session", &[]),
        ("protect", &["headers"]),
        ("stateless", &["headers"]),
    ],
    &[("pool", &[]), ("twin", &["pool"])],
    &[
        ("tls", &[]),
        ("listener", &["tls"]),
        ("upstream", &["tls"]),
        ("store", &["tls"]),
        ("probe", &["upstream"]),
        ("private", &[]),
        ("jwks", &["tls"]),
    ],
    &[("config", &[]), ("runtime", &["config"]), ("proxy", &["runtime", "config"])],
    &[("admin", &[]), ("session_api", &[]), ("simulate", &[])],
    &[("app", &[]), ("ctl", &[]), ("demo", &["app"]), ("cli", &["app", "ctl", "demo"]), ("main", &["cli"])],
];

/// What floors 1 and 2 must stay free of: they decide, and touch nothing.
const EFFECTS: &[&str] =
    &["tokio", "hyper", "std::net::Tcp", "std::fs", "Clock::now", "getrandom", "toml::", "Instant::now"];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// Every source file with the module that it belongs to.
fn modules() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let name = |path: &Path| {
        path.strip_prefix(&root)
            .unwrap()
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned()
    };
    sources(&root).into_iter().map(|path| (name(&path), path)).filter(|(module, _)| module != "lib").collect()
}

/// The code without its tests, which may use what they like.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]").next().unwrap().to_owned()
}

#[test]
fn modules_import_only_what_their_floor_allows() {
    let mut allowed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut below: BTreeSet<&str> = BTreeSet::new();
    for floor in FLOORS {
        for (module, beside) in *floor {
            allowed.insert(module, below.iter().copied().chain(beside.iter().copied()).chain([*module]).collect());
        }
        below.extend(floor.iter().map(|(module, _)| *module));
    }
    for (module, path) in modules().into_iter().filter(|(_, path)| !path.ends_with("tests.rs")) {
        let allowed = allowed.get(module.as_str()).unwrap_or_else(|| panic!("{module} stands on no floor"));
        for (before, rest) in code(&path).match_indices("crate::").map(|(at, _)| (at, code(&path)[at + 7..].to_owned()))
        {
            let names: Vec<String> = match rest.strip_prefix('{') {
                Some(group) => group
                    .split('}')
                    .next()
                    .unwrap()
                    .split(',')
                    .map(|name| name.trim().split("::").next().unwrap().to_owned())
                    .collect(),
                None => {
                    vec![rest.split(|byte: char| !byte.is_alphanumeric() && byte != '_').next().unwrap().to_owned()]
                }
            };
            for name in names.iter().filter(|name| !name.is_empty()) {
                assert!(
                    allowed.contains(name.as_str()),
                    "{} (byte {before}): {module} must not import {name}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn decisions_and_state_are_free_of_effects() {
    let pure: BTreeSet<&str> = FLOORS[1].iter().chain(FLOORS[2]).map(|(module, _)| *module).collect();
    for (module, path) in
        modules().into_iter().filter(|(module, path)| pure.contains(module.as_str()) && !path.ends_with("tests.rs"))
    {
        let code: String =
            code(&path).lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for effect in EFFECTS {
            assert!(!code.contains(effect), "{}: {module} must stay free of {effect}", path.display());
        }
    }
}

#[test]
fn every_module_is_named_in_the_documents() {
    let document = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    for (module, _) in modules() {
        assert!(document.contains(&format!("`{module}`")), "ARCHITECTURE.md does not name `{module}`");
    }
}
