//! The list of a backup's files. Its last line has their number: a list that was cut is not taken for a whole one.

use std::io::{BufRead, Write};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The name of the list in a backup.
pub const NAME: &str = "backup.jsonl";

/// The version of the format.
pub const FORMAT: u32 = 1;

/// The name of the metadata in a backup.
pub const METADATA: &str = "argus.db";

/// What the names of the other files begin with.
const FOLDERS: [&str; 3] = ["lake/", "raw/", "audit/"];

/// The first line: what the backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The version of the format.
    pub format: u32,
    /// The version of Argus that made it.
    pub argus: String,
    /// When the metadata were copied, RFC 3339.
    pub at: String,
    /// The last accepted epoch: all of it and nothing later is in the backup.
    pub epoch: u64,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path in the backup.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
struct End {
    /// The number of files before it.
    files: u64,
}

/// The list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What the backup is of.
    pub head: Head,
    /// Its files.
    pub entries: Vec<Entry>,
}

impl Manifest {
    /// Its text.
    pub fn to_text(&self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut line = |value: serde_json::Value| writeln!(text, "{value}");
        line(serde_json::to_value(&self.head)?)?;
        for entry in &self.entries {
            line(serde_json::to_value(entry)?)?;
        }
        line(serde_json::to_value(End { files: self.entries.len() as u64 })?)?;
        Ok(text)
    }

    /// Reads a whole list.
    pub fn of_text(text: &[u8]) -> Result<Manifest> {
        let mut lines = text.lines();
        let head = lines.next().context("the list of its files is empty")??;
        let head: Head = serde_json::from_str(&head).context("the first line of its list is broken")?;
        ensure!(
            head.format == FORMAT,
            "it has the format {}, and this argus reads {FORMAT}; it was made by argus {}",
            head.format,
            head.argus
        );
        let mut entries = Vec::new();
        for line in lines {
            let line = line?;
            if let Ok(End { files }) = serde_json::from_str(&line) {
                ensure!(files == entries.len() as u64, "its list has {} files of {files}", entries.len());
                return Ok(Manifest { head, entries });
            }
            let entry: Entry = serde_json::from_str(&line)
                .with_context(|| format!("line {} of its list is broken", entries.len() + 2))?;
            let is_inside = |part: &str| !part.is_empty() && part != "." && part != "..";
            let is_of_backup = entry.path == METADATA || FOLDERS.iter().any(|folder| entry.path.starts_with(folder));
            ensure!(
                is_of_backup && entry.path.split('/').all(is_inside),
                "its list has the path {:?}, which no backup has",
                entry.path
            );
            entries.push(entry);
        }
        bail!("its list ends after {} files without its last line: the backup is not whole", entries.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let head = Head { format: FORMAT, argus: "0.1.0".to_owned(), at: "2026-03-01T10:00:00Z".to_owned(), epoch: 7 };
        let entry = |path: &str| Entry { path: path.to_owned(), bytes: 3, sha256: "ab".repeat(32) };
        Manifest { head, entries: vec![entry("argus.db"), entry("raw/a/b")] }
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let text = manifest().to_text().expect("writes");
        assert_eq!(Manifest::of_text(&text).expect("reads"), manifest());
    }

    #[test]
    fn a_list_that_was_cut_anywhere_is_refused() {
        let text = manifest().to_text().expect("writes");
        for end in 0..text.len() - 1 {
            assert!(Manifest::of_text(&text[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_path_that_leaves_the_backup_and_another_format_are_refused() {
        for path in ["../x", "/etc/passwd", "raw//b", "raw/./b", "raw/../../x", "argus.lock", "argus.db-wal", ""] {
            let mut manifest = manifest();
            manifest.entries[0].path = path.to_owned();
            assert!(Manifest::of_text(&manifest.to_text().expect("writes")).is_err(), "{path}");
        }
        let mut other = manifest();
        other.head.format = 2;
        let error = Manifest::of_text(&other.to_text().expect("writes")).expect_err("another format").to_string();
        assert!(error.contains("format 2"), "{error}");
    }
}
