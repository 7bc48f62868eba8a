//! The files of the audit log: each line has the SHA-256 of the line before it, also across files.
//!
//! ```text
//!  {"n":1,"prev":"0000…","at":…,"action":…}
//!  {"n":2,"prev":SHA-256 of the line above, without its line feed,…}
//! ```
//!
//! A file begins with the first record of a day (UTC), or when the last one is large; old files may be deleted, from the oldest. Who holds the hash of
//! a line can prove later that nothing up to it was changed (`argus audit verify --contains HASH`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::Record;

/// A file that is larger is not appended to (64 MiB).
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The length of the day at the beginning of a time (RFC 3339).
const DAY_CHARS: usize = 10;

/// The longest line that is read (64 KiB).
const LINE_BYTES_MAX: u64 = 64 << 10;

const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";

/// The hash that the first line has, in place of that of a line before it.
const FIRST: [u8; 32] = [0; 32];

/// A line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Line<R> {
    /// The number of the record, from 1.
    n: u64,
    /// The SHA-256 of the line before it.
    prev: String,
    #[serde(flatten)]
    record: R,
}

/// The end of the chain, to which records are appended.
pub struct Chain {
    folder: PathBuf,
    keep: Option<Duration>,
    file: File,
    day: NaiveDate,
    bytes: u64,
    last: u64,
    hash: [u8; 32],
    torn: Option<u64>,
}

impl Chain {
    /// Opens the chain in a folder, which is created. An unfinished last line is cut off. Files that were not changed for
    /// longer than `keep` are deleted whenever a file begins.
    pub fn open(folder: &Path, keep: Option<Duration>) -> io::Result<Chain> {
        fs::create_dir_all(folder)?;
        let (folder, day) = (folder.to_owned(), Utc::now().date_naive());
        let Some(last_file) = files(&folder)?.pop() else {
            let file = create(&folder, 1)?;
            return Ok(Chain { folder, keep, file, day, bytes: 0, last: 0, hash: FIRST, torn: None });
        };
        let file = OpenOptions::new().append(true).open(&last_file)?;
        let text = fs::read(&last_file)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let torn = (text.len() > whole).then(|| (text.len() - whole) as u64);
        if torn.is_some() {
            file.set_len(whole as u64)?;
        }
        let number = number_of(&last_file);
        let lines = text[..whole].strip_suffix(b"\n").unwrap_or_default();
        let (last, hash, day) = match lines.rsplit(|byte| *byte == b'\n').next().filter(|line| !line.is_empty()) {
            Some(line) => {
                let read: Line<Record> =
                    serde_json::from_slice(line).map_err(|error| invalid(&last_file, &error.to_string()))?;
                let written = read.record.at.get(..DAY_CHARS).and_then(|day| day.parse().ok());
                (read.n, hash_of(line), written.unwrap_or(day))
            }
            // The file was begun and nothing was written: its name has the number of its first record.
            None => (number - 1, before(&folder, number)?, day),
        };
        Ok(Chain { folder, keep, file, day, bytes: whole as u64, last, hash, torn })
    }

    /// The bytes of an unfinished line that were cut off when the chain was opened.
    pub fn torn_bytes(&self) -> Option<u64> {
        self.torn
    }

    /// Appends records: all, or none. They are durable after [`Chain::sync`].
    pub fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let day = Utc::now().date_naive();
        if self.bytes > 0 && (day != self.day || self.bytes >= FILE_BYTES_MAX) {
            self.sync()?;
            self.file = create(&self.folder, self.last + 1)?;
            (self.day, self.bytes) = (day, 0);
            self.delete_old()?;
        }
        // An attempt that failed may have left a part.
        if self.file.metadata()?.len() != self.bytes {
            self.file.set_len(self.bytes)?;
        }
        let (mut text, mut last, mut hash) = (Vec::new(), self.last, self.hash);
        for record in records {
            last += 1;
            let line = serde_json::to_vec(&Line { n: last, prev: hex::encode(hash), record })?;
            hash = hash_of(&line);
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        self.file.write_all(&text)?;
        (self.last, self.hash) = (last, hash);
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Makes everything appended durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn delete_old(&self) -> io::Result<()> {
        let Some(keep) = self.keep else { return Ok(()) };
        let mut all = files(&self.folder)?;
        // The one that is being written stays.
        all.pop();
        for file in all {
            let age = SystemTime::now().duration_since(fs::metadata(&file)?.modified()?).unwrap_or_default();
            if age <= keep {
                break;
            }
            fs::remove_file(file)?;
        }
        Ok(())
    }
}

/// What was found in a chain that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Records.
    pub records: u64,
    /// The number of the first one: earlier ones were deleted by age.
    pub first: u64,
    /// The hash of the last line, in hexadecimal.
    pub last_hash: String,
    /// Whether a line has the hash that was asked for; true if none was.
    pub contains: bool,
}

/// Why a chain is not whole.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum Broken {
    #[error("{} has no audit log", .0.display())]
    Missing(PathBuf),
    #[error("{}, line {line}: {reason}", .file.display())]
    Line { file: PathBuf, line: u64, reason: String },
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
}

/// Verifies all files in a folder, and looks for the line with a hash.
pub fn verify(folder: &Path, wanted: Option<&str>) -> Result<Verified, Broken> {
    let files = files(folder).map_err(|error| Broken::Read(folder.to_owned(), error))?;
    let mut end: Option<(u64, [u8; 32])> = None;
    let mut verified = Verified { records: 0, first: 0, last_hash: hex::encode(FIRST), contains: wanted.is_none() };
    if files.is_empty() {
        return Err(Broken::Missing(folder.to_owned()));
    }
    for file in files {
        let opened = File::open(&file).map_err(|error| Broken::Read(file.clone(), error))?;
        let mut reader = BufReader::new(opened);
        let mut number = 0;
        loop {
            number += 1;
            let broken = |reason: &str| Broken::Line { file: file.clone(), line: number, reason: reason.to_owned() };
            let mut line = Vec::new();
            let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if read.map_err(|error| Broken::Read(file.clone(), error))? == 0 {
                break;
            }
            let Some(line) = line.strip_suffix(b"\n") else {
                return Err(broken("the record is not finished: the server was killed while it wrote, or is writing"));
            };
            let found: Line<Record> =
                serde_json::from_slice(line).map_err(|error| broken(&format!("this is no record: {error}")))?;
            match end {
                None if found.n == 1 && found.prev != hex::encode(FIRST) => {
                    return Err(broken("the first record has a record before it"));
                }
                None => {
                    verified.first = found.n;
                    // The hash of a deleted record proves that it was there.
                    verified.contains |= wanted.is_some_and(|wanted| found.prev.eq_ignore_ascii_case(wanted));
                }
                Some((last, _)) if found.n != last + 1 => {
                    return Err(broken(&format!(
                        "record {} follows record {last}: records are missing or were added",
                        found.n
                    )));
                }
                Some((last, hash)) if found.prev != hex::encode(hash) => {
                    return Err(broken(&format!(
                        "record {last} was changed: it does not have the hash that record {} names",
                        found.n
                    )));
                }
                Some(_) => {}
            }
            let hash = hash_of(line);
            verified.records += 1;
            verified.last_hash = hex::encode(hash);
            verified.contains |= wanted.is_some_and(|wanted| verified.last_hash.eq_ignore_ascii_case(wanted));
            end = Some((found.n, hash));
        }
    }
    Ok(verified)
}

fn hash_of(line: &[u8]) -> [u8; 32] {
    Sha256::digest(line).into()
}

/// The files of a folder, the oldest first.
pub fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if number_of(&path) > 0 {
            files.push(path);
        }
    }
    files.sort_by_key(|path| number_of(path));
    Ok(files)
}

/// The number of the first record of a file, by its name; 0 if it is no file of an audit log.
fn number_of(path: &Path) -> u64 {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok()).unwrap_or(0)
}

fn create(folder: &Path, number: u64) -> io::Result<File> {
    let path = folder.join(format!("{PREFIX}{number:012}{SUFFIX}"));
    // An attempt that failed after this has left an empty file.
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    File::open(folder)?.sync_all()?;
    Ok(file)
}

/// The hash of the last line before the file with this number.
fn before(folder: &Path, number: u64) -> io::Result<[u8; 32]> {
    let earlier = files(folder)?.into_iter().rfind(|path| number_of(path) < number);
    let Some(file) = earlier else { return Ok(FIRST) };
    let text = fs::read(&file)?;
    let lines = text.strip_suffix(b"\n").ok_or_else(|| invalid(&file, "its last record is not finished"))?;
    Ok(lines.rsplit(|byte| *byte == b'\n').next().map_or(FIRST, hash_of))
}

fn invalid(file: &Path, reason: &str) -> io::Error {
    let message = format!("{} is not an audit log: {reason}; move the folder away to begin a new one", file.display());
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(records: u64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for number in 0..records {
            // Each opens the chain anew.
            let mut chain = Chain::open(folder.path(), None).expect("opens");
            chain.append(&[Record::of_server(&number.to_string())]).expect("appends");
        }
        folder
    }

    fn only_file(folder: &Path) -> PathBuf {
        files(folder).expect("reads").pop().expect("a file")
    }

    #[test]
    fn a_chain_goes_on_after_each_opening() {
        let folder = filled(5);
        let verified = verify(folder.path(), None).expect("whole");
        assert_eq!((verified.records, verified.first), (5, 1));
        let contains = |hash: &str| verify(folder.path(), Some(hash)).expect("whole").contains;
        assert!(contains(&verified.last_hash));
        assert!(!contains("00ff"));
    }

    #[test]
    fn every_change_of_a_byte_breaks_it_but_in_the_last_record() {
        let folder = filled(4);
        let file = only_file(folder.path());
        let text = fs::read(&file).expect("reads");
        let last = text[..text.len() - 1].iter().rposition(|byte| *byte == b'\n').expect("lines") + 1;
        for at in 0..last {
            let mut changed = text.clone();
            changed[at] ^= 1;
            fs::write(&file, &changed).expect("writes");
            assert!(verify(folder.path(), None).is_err(), "byte {at}");
        }
        // The last record is protected by its hash.
        fs::write(&file, &text).expect("writes");
        let hash = verify(folder.path(), None).expect("whole").last_hash;
        let mut changed = text.clone();
        let digit = text.len() - 4;
        changed[digit] ^= 1;
        fs::write(&file, &changed).expect("writes");
        assert!(!verify(folder.path(), Some(&hash)).is_ok_and(|verified| verified.contains));
    }

    #[test]
    fn a_removed_an_added_and_a_swapped_record_break_it() {
        let folder = filled(4);
        let file = only_file(folder.path());
        let text = fs::read_to_string(&file).expect("reads");
        let lines: Vec<&str> = text.lines().collect();
        for wrong in [
            vec![lines[0], lines[2], lines[3]],
            vec![lines[0], lines[1], lines[1], lines[2], lines[3]],
            vec![lines[0], lines[2], lines[1], lines[3]],
        ] {
            fs::write(&file, wrong.join("\n") + "\n").expect("writes");
            assert!(verify(folder.path(), None).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_unfinished_record_is_cut_off() {
        let folder = filled(3);
        let file = only_file(folder.path());
        let text = fs::read(&file).expect("reads");
        fs::write(&file, &text[..text.len() - 5]).expect("writes");
        assert!(matches!(verify(folder.path(), None), Err(Broken::Line { line: 3, .. })));
        let mut chain = Chain::open(folder.path(), None).expect("opens");
        assert!(chain.torn_bytes().is_some());
        chain.append(&[Record::of_server("again")]).expect("appends");
        assert_eq!(verify(folder.path(), None).expect("whole").records, 3);
    }

    #[test]
    fn a_chain_goes_on_in_the_next_file() {
        let folder = filled(2);
        let mut chain = Chain::open(folder.path(), Some(Duration::ZERO)).expect("opens");
        for expected in 3..6 {
            chain.bytes = FILE_BYTES_MAX;
            chain.append(&[Record::of_server("x")]).expect("appends");
            assert_eq!(chain.last, expected);
        }
        // Older files are gone, and a file that was begun without a record is continued.
        drop(chain);
        let verified = verify(folder.path(), None).expect("whole");
        assert!(verified.first > 1 && verified.records < 5, "{verified:?}");
        create(folder.path(), 6).expect("creates");
        let mut chain = Chain::open(folder.path(), None).expect("opens");
        chain.append(&[Record::of_server("y")]).expect("appends");
        assert_eq!(verify(folder.path(), None).expect("whole").records, verified.records + 1);
    }
}
