//! The layers of `src` use only lower layers, and words that were replaced stay out.

use std::path::{Path, PathBuf};

/// The folders and files of `src`, from the bottom up: each may use those before it.
const LAYERS: [&str; 27] = [
    "allocator",
    "data_dir",
    "shutdown",
    "telemetry",
    "tls",
    "storage",
    "domain",
    "catalog",
    "metadata",
    "ingest",
    "pipeline",
    "access",
    "audit",
    "inbox",
    "maintenance",
    "answers",
    "kafka",
    "assistant",
    "cluster",
    "app",
    "pages",
    "http",
    "sql_servers",
    "syslog",
    "server",
    "backup",
    "cli",
];

/// Words that a reader of the documentation of Kafka, Flink, Timely, Delta or PostgreSQL would not know, each with the
/// word to use.
const REPLACED: [(&str, &str); 14] = [
    ("sighting", "occurrence"),
    ("upkeep", "maintenance"),
    ("the horizon", "since"),
    ("sign of life", "keep-alive"),
    ("broke off", "was interrupted, was aborted"),
    ("breaks off", "is interrupted, is aborted"),
    ("make much of little", "amplify"),
    ("only where friends", "bind to trusted networks only"),
    ("told so", "is refused"),
    ("come again", "retry later"),
    ("do not hold", "are invalid"),
    ("does not hold", "is invalid"),
    ("whoever asks", "the client"),
    ("who asks", "the client"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder whose names end so, but for what is built.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder is there").flatten().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !name.starts_with('.') && name != "target" && name != "argus-data"
    };
    entries
        .filter(is_ours)
        .flat_map(|path| match path.is_dir() {
            true => files(&path, endings),
            false if endings.iter().any(|end| path.to_string_lossy().ends_with(end)) => vec![path],
            false => Vec::new(),
        })
        .collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("text")
}

#[test]
fn layers_use_only_lower_layers() {
    let src = root().join("src");
    let mut wrong = Vec::new();
    for path in files(&src, &[".rs"]) {
        let below = path.strip_prefix(&src).expect("below src");
        let first = below.components().next().expect("a name").as_os_str().to_string_lossy();
        let own = first.trim_end_matches(".rs");
        if ["lib", "main"].contains(&own) {
            continue;
        }
        let level = LAYERS.iter().position(|layer| *layer == own);
        let level = level.unwrap_or_else(|| panic!("{own} has no place among the layers"));
        for used in read(&path).split("crate::").skip(1) {
            // `crate::name::…`, or `crate::{name::…, other}`.
            let used = used.split(';').next().unwrap_or_default();
            let list = used.strip_prefix('{').map_or_else(|| vec![used], |list| list.split(',').collect());
            for name in list {
                let name = name.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                if LAYERS.iter().position(|layer| *layer == name).is_some_and(|used| used > level) {
                    wrong.push(format!("{} uses {name}", below.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn replaced_words_stay_out() {
    let mut wrong = Vec::new();
    for path in files(root(), &[".rs", ".md", ".py", ".sql", ".toml", ".sh"]) {
        // The changelog names what was renamed.
        if path.ends_with("tests/tidy.rs") || path.ends_with("CHANGELOG.md") {
            continue;
        }
        for (line, text) in read(&path).lines().zip(1..).map(|(text, line)| (line, text.to_lowercase())) {
            // What earlier versions wrote is read by its name.
            let is_alias = text.contains("serde(alias");
            // A name of another crate.
            let text = text.replace("run_upkeep", "");
            for (word, instead) in REPLACED.iter().filter(|(word, _)| !is_alias && text.contains(word)) {
                wrong.push(format!("{}:{line}: write {instead:?} for {word:?}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
