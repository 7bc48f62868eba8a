//! Archives of files: tar (also compressed) and zip.
//!
//! A tar is read as it arrives. A zip has its table of contents at its end, so it goes to a temporary file first. Nothing
//! is unpacked to disk: each file goes to the function that takes it.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::rc::Rc;

use argus_dataflow::text::{Archive as Kind, Compression};
use tar::EntryType;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::domain::batch::{Invalid, check_name};
use crate::ingest::IngestError;
use crate::ingest::disk::is_disk_full;

/// The limit of files of an archive; they are accepted together.
pub const FILES_MAX: usize = 1000;

/// The limit of entries of an archive, with its folders.
const ENTRIES_MAX: usize = 10_000;

/// The limit of what stands between two files of a tar: headers, long names, attributes (1 MiB).
const HEADERS_BYTES_MAX: u64 = 1 << 20;

/// The first bytes that tell a tar from other content.
const TAR_SNIFF_BYTES: usize = 512;

/// The end of a zip: its last record with the longest comment.
const ZIP_END_BYTES: u64 = 22 + 0xffff;
const ZIP_END_MAGIC: &[u8] = b"PK\x05\x06";
/// Where the record has the number of entries. The greatest says that there are more.
const ZIP_END_ENTRIES: usize = 10;

/// Why an archive was refused. Nothing of it was counted.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum ArchiveError {
    #[error(
        "the body is neither a form, nor a tar archive (plain or compressed), nor a zip archive; send a single file by PUT"
    )]
    NotAnArchive,
    #[error(
        "the archive has more than {FILES_MAX} files, or {ENTRIES_MAX} entries; send its files in several archives"
    )]
    TooManyFiles,
    #[error("the archive's entry {0:?} leaves its folder; use relative paths without \"..\"")]
    Outside(String),
    #[error("the archive's entry {0:?} is {1}; only files and folders are taken")]
    NotAFile(String, &'static str),
    #[error("the archive's entry {0:?} is encrypted; send it decrypted")]
    Encrypted(String),
    #[error("the archive's entry {0:?} has an invalid name: {1}")]
    Name(String, Invalid),
    #[error("the archive has two files named {0:?}; a folder's separator becomes _")]
    Twice(String),
    #[error("the archive has no files")]
    Empty,
    #[error("the archive is truncated or corrupt ({0})")]
    Damaged(io::Error),
    #[error("the file {name:?} of the archive could not be stored")]
    File {
        name: String,
        #[source]
        error: IngestError,
    },
    #[error("the archive's files are too large together; send them in several archives")]
    TooLarge,
    #[error(transparent)]
    Body(#[from] IngestError),
}

impl ArchiveError {
    /// Whether the same archive fails again.
    pub fn is_of_the_archive(&self) -> bool {
        match self {
            ArchiveError::File { error, .. } | ArchiveError::Body(error) => error.is_of_the_bytes(),
            _ => true,
        }
    }
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> ArchiveError {
        match error.get_ref().is_some_and(|inner| inner.is::<IngestError>()) {
            true => ArchiveError::Body(IngestError::ExpandsTooMuch),
            false => ArchiveError::Damaged(error),
        }
    }
}

/// Calls `take` with the name and the content of each file of an archive, in its order.
///
/// `may_expand` says whether so many decoded bytes are allowed, for the bytes of the body that have arrived.
pub fn read(
    input: impl Read + Send,
    may_expand: impl Fn(u64) -> bool + Send + Clone,
    take: impl FnMut(String, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut files = Files { names: HashSet::new(), entries: 0, take };
    let (first, input) = peek(Expanding { input, read: 0, may_expand: may_expand.clone() })?;
    if Kind::sniff(&first).is_some_and(|kind| kind.kind == "zip") {
        read_zip(input, &mut files)?;
    } else {
        let decoded = Compression::sniff(&first).reader(input)?;
        let (first, input) = peek(Expanding { input: decoded, read: 0, may_expand })?;
        // A tar without entries is zeros.
        let is_empty_tar = first.len() == TAR_SNIFF_BYTES && first.iter().all(|byte| *byte == 0);
        if !is_empty_tar && Kind::sniff(&first).is_none_or(|kind| kind.kind != "tar") {
            return Err(ArchiveError::NotAnArchive);
        }
        read_tar(input, &mut files)?;
    }
    if files.names.is_empty() { Err(ArchiveError::Empty) } else { Ok(()) }
}

/// The first bytes, and a reader that has them again.
fn peek<R: Read>(mut input: R) -> io::Result<(Vec<u8>, impl Read + use<R>)> {
    let mut first = Vec::with_capacity(TAR_SNIFF_BYTES);
    input.by_ref().take(TAR_SNIFF_BYTES as u64).read_to_end(&mut first)?;
    Ok((first.clone(), Cursor::new(first).chain(input)))
}

/// The files that were taken.
struct Files<T> {
    names: HashSet<String>,
    entries: usize,
    take: T,
}

impl<T: FnMut(String, &mut dyn Read) -> Result<(), ArchiveError>> Files<T> {
    fn count_entry(&mut self) -> Result<(), ArchiveError> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX { Err(ArchiveError::TooManyFiles) } else { Ok(()) }
    }

    /// Takes a file of `size` bytes.
    fn take(&mut self, path: &str, size: u64, content: &mut dyn Read) -> Result<(), ArchiveError> {
        let name = name_of(path)?;
        if self.names.len() == FILES_MAX {
            return Err(ArchiveError::TooManyFiles);
        }
        if !self.names.insert(name.clone()) {
            return Err(ArchiveError::Twice(name));
        }
        let mut content = Whole { content, missing: size };
        (self.take)(name, &mut content)
    }
}

/// The name of a file at a path of an archive. Names have no folders: their separators become `_`, as in `argus upload`.
fn name_of(path: &str) -> Result<String, ArchiveError> {
    let is_absolute = path.starts_with(['/', '\\']) || path.as_bytes().get(1) == Some(&b':');
    let parts: Vec<&str> = path.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".").collect();
    if is_absolute || parts.contains(&"..") {
        return Err(ArchiveError::Outside(path.to_owned()));
    }
    let name = parts.join("_");
    check_name(&name).map_err(|invalid| ArchiveError::Name(path.to_owned(), invalid))?;
    Ok(name)
}

fn read_tar<T>(input: impl Read, files: &mut Files<T>) -> Result<(), ArchiveError>
where
    T: FnMut(String, &mut dyn Read) -> Result<(), ArchiveError>,
{
    // The reader of archives holds long names and attributes in memory.
    let headers = Rc::new(Cell::new(HEADERS_BYTES_MAX));
    let mut archive = tar::Archive::new(Headers { input, left: Rc::clone(&headers) });
    for entry in archive.entries()? {
        let mut entry = entry?;
        files.count_entry()?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let size = entry.size();
        headers.set(size.saturating_add(HEADERS_BYTES_MAX));
        match entry.header().entry_type() {
            EntryType::Directory => drop(name_of_folder(&path)?),
            EntryType::Regular | EntryType::Continuous => files.take(&path, size, &mut entry)?,
            // What `git archive` says of the whole archive.
            EntryType::XGlobalHeader => {}
            EntryType::Symlink | EntryType::Link => return Err(ArchiveError::NotAFile(path, "a link")),
            EntryType::GNUSparse => return Err(ArchiveError::NotAFile(path, "a sparse file")),
            _ => return Err(ArchiveError::NotAFile(path, "a device, or unknown")),
        }
        // What is left of the entry is skipped; the budget of the headers begins behind it.
        io::copy(&mut entry, &mut io::sink())?;
        headers.set(HEADERS_BYTES_MAX);
    }
    // The end of a compressed stream has its checksum.
    headers.set(u64::MAX);
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

/// Checks the path of a folder; the archive's own is `./`.
fn name_of_folder(path: &str) -> Result<(), ArchiveError> {
    match name_of(path) {
        Err(error @ ArchiveError::Outside(_)) => Err(error),
        _ => Ok(()),
    }
}

fn read_zip<T>(mut input: impl Read, files: &mut Files<T>) -> Result<(), ArchiveError>
where
    T: FnMut(String, &mut dyn Read) -> Result<(), ArchiveError>,
{
    let mut spooled = tempfile::tempfile().map_err(|error| ArchiveError::Body(IngestError::Store(error)))?;
    io::copy(&mut input, &mut spooled).map_err(|error| match is_disk_full(&error) {
        true => ArchiveError::Body(IngestError::DiskFull),
        false => error.into(),
    })?;
    if entries_of_zip(&mut spooled)? > ENTRIES_MAX {
        return Err(ArchiveError::TooManyFiles);
    }
    let damaged = |error: ZipError| ArchiveError::Damaged(io::Error::other(error));
    let mut archive = ZipArchive::new(spooled).map_err(damaged)?;
    for index in 0..archive.len() {
        files.count_entry()?;
        let entry = archive.by_index_raw(index).map_err(damaged)?;
        let path = entry.name().map_err(damaged)?.into_owned();
        let (is_encrypted, is_link, is_folder) = (entry.encrypted(), entry.is_symlink(), entry.is_dir());
        drop(entry);
        match () {
            () if is_folder => name_of_folder(&path)?,
            () if is_encrypted => return Err(ArchiveError::Encrypted(path)),
            () if is_link => return Err(ArchiveError::NotAFile(path, "a link")),
            () => {
                let mut content = archive.by_index(index).map_err(damaged)?;
                let size = content.size();
                files.take(&path, size, &mut content)?;
            }
        }
    }
    Ok(())
}

/// The greatest number of entries that the end of a zip claims: its table of contents is read into memory.
fn entries_of_zip(file: &mut File) -> io::Result<usize> {
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(ZIP_END_BYTES)))?;
    let mut end = Vec::new();
    file.take(ZIP_END_BYTES).read_to_end(&mut end)?;
    file.seek(SeekFrom::Start(0))?;
    let claimed = |at: usize| {
        let bytes = end.get(at + ZIP_END_ENTRIES..at + ZIP_END_ENTRIES + 2)?;
        Some(usize::from(u16::from_le_bytes([bytes[0], bytes[1]])))
    };
    Ok(memchr::memmem::find_iter(&end, ZIP_END_MAGIC).filter_map(claimed).max().unwrap_or(0))
}

/// A reader that fails if it is much longer than what has arrived: what belongs to no file takes time, too.
struct Expanding<R, F> {
    input: R,
    read: u64,
    may_expand: F,
}

impl<R: Read, F: Fn(u64) -> bool> Read for Expanding<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.read += count as u64;
        match (self.may_expand)(self.read) {
            true => Ok(count),
            false => Err(io::Error::other(IngestError::ExpandsTooMuch)),
        }
    }
}

/// A reader that fails if the content ends early.
struct Whole<'r> {
    content: &'r mut dyn Read,
    missing: u64,
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.missing = self.missing.saturating_sub(count as u64);
        if count == 0 && !buffer.is_empty() && self.missing > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends within a file"));
        }
        Ok(count)
    }
}

/// A reader of a limited number of bytes.
struct Headers<R> {
    input: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Headers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        match self.left.get().checked_sub(count as u64) {
            Some(left) => self.left.set(left),
            None => return Err(io::Error::new(io::ErrorKind::InvalidData, "its headers are too long")),
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;

    use super::*;

    fn files_of(bytes: &[u8]) -> Result<Vec<(String, String)>, String> {
        let mut files = Vec::new();
        let any = |_| true;
        let taken = read(bytes, any, |name, content| {
            let mut text = String::new();
            content.read_to_string(&mut text)?;
            files.push((name, text));
            Ok(())
        });
        taken.map(|()| files).map_err(|error| error.to_string())
    }

    fn tar(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, kind, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(text.len() as u64);
            // The builder refuses unsafe paths; an attacker does not.
            let name = &mut header.as_old_mut().name;
            name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            archive.append(&header, text.as_bytes()).expect("in memory");
        }
        archive.into_inner().expect("in memory")
    }

    fn zip(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (path, text) in entries {
            archive.start_file(*path, SimpleFileOptions::default()).expect("in memory");
            archive.write_all(text.as_bytes()).expect("in memory");
        }
        archive.finish().expect("in memory").into_inner()
    }

    #[test]
    fn files_of_tars_and_zips_have_names_without_folders() {
        let expected = Ok(vec![("a.log".to_owned(), "A\n".to_owned()), ("ecu_b.log".to_owned(), "B".repeat(3000))]);
        let long = "B".repeat(3000);
        let plain = tar(&[
            ("./", EntryType::Directory, ""),
            ("./a.log", EntryType::Regular, "A\n"),
            ("ecu/", EntryType::Directory, ""),
            ("ecu/b.log", EntryType::Regular, &long),
        ]);
        assert_eq!(files_of(&plain), expected);
        assert_eq!(files_of(&zstd::encode_all(&*plain, 1).expect("in memory")), expected);
        assert_eq!(files_of(&zip(&[("a.log", "A\n"), ("ecu\\b.log", &long)])), expected);
    }

    #[test]
    fn archives_that_are_unsafe_or_damaged_are_refused() {
        let file = EntryType::Regular;
        let good = tar(&[("a.log", file, "A\n")]);
        let many: Vec<(String, EntryType)> = (0..=FILES_MAX).map(|number| (format!("{number}.log"), file)).collect();
        let many: Vec<(&str, EntryType, &str)> = many.iter().map(|(path, kind)| (path.as_str(), *kind, "x")).collect();
        let folders = vec![("f/", EntryType::Directory, ""); ENTRIES_MAX + 1];
        let mut encrypted = zip(&[("a.log", "A\n")]);
        let table = memchr::memmem::find(&encrypted, b"PK\x01\x02").expect("a table of contents");
        encrypted[6] |= 1;
        encrypted[table + 8] |= 1;
        let truncated = zip(&[("a.log", "A\n")]);
        for (bytes, reason) in [
            (tar(&[("../a.log", file, "A")]), "leaves its folder"),
            (tar(&[("/etc/a.log", file, "A")]), "leaves its folder"),
            (tar(&[("x/../../a.log", file, "A")]), "leaves its folder"),
            (tar(&[("../", EntryType::Directory, ""), ("a.log", file, "A")]), "leaves its folder"),
            (zip(&[("C:\\a.log", "A")]), "leaves its folder"),
            (tar(&[("a.log", EntryType::Symlink, "")]), "a link"),
            (tar(&[("a.log", EntryType::Link, "")]), "a link"),
            (tar(&[("a.log", EntryType::Fifo, "")]), "a device"),
            (tar(&[("a.log", file, "A"), ("./a.log", file, "B")]), "two files named \"a.log\""),
            (tar(&[("d/", EntryType::Directory, "")]), "no files"),
            (tar(&many), "more than 1000 files"),
            (tar(&folders), "10000 entries"),
            (good[..600].to_vec(), "truncated"),
            (zstd::encode_all(&good[..], 1).expect("in memory")[..40].to_vec(), "truncated"),
            (truncated[..truncated.len() - 30].to_vec(), "truncated or corrupt"),
            (encrypted, "is encrypted"),
            (tar(&[("pax_global_header", EntryType::XGlobalHeader, "52 comment=x\n")]), "no files"),
            (b"a line of a log\n".to_vec(), "nor a tar archive"),
            (Vec::new(), "nor a tar archive"),
        ] {
            let refused = files_of(&bytes).expect_err(reason);
            assert!(refused.contains(reason), "{refused}, not {reason}");
        }
    }

    #[test]
    fn what_belongs_to_no_file_may_not_expand_without_limit() {
        let zeros = zstd::encode_all(io::repeat(0).take(64 << 20), 1).expect("in memory");
        let arrived = zeros.len() as u64;
        let refused = read(&zeros[..], move |bytes| bytes <= 256 * arrived, |_, _| Ok(())).expect_err("a bomb");
        assert!(matches!(refused, ArchiveError::Body(IngestError::ExpandsTooMuch)), "{refused}");
    }

    #[test]
    fn a_long_name_that_never_ends_is_not_held_in_memory() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let bytes = Cursor::new(header.as_bytes().to_vec()).chain(io::repeat(b'x'));
        let refused = read(bytes, |_| true, |_, _| Ok(())).expect_err("too long").to_string();
        assert!(refused.contains("headers are too long"), "{refused}");
    }
}
