//! The text of stored files: bytes, lines, and the lines around a line.
//!
//! A text is read from the raw store on a blocking thread, and decompressed on the way. Only a few chunks, or one appended
//! part, are in memory: a client that is slow makes the thread wait.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use argus_query::QueryError;
use argus_query::engine::admission::Admission;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::ingest::raw_store::RawStore;
use crate::ingest::stored_file::{self, StoredBytes};
use crate::metadata::{Metadata, MetadataError, StoredFile};

/// Texts that are read at once.
const READ_MAX: usize = 16;

/// Requests that wait to read a text; more are refused.
const WAITING_MAX: usize = 64;

/// How long a request waits.
const PERMIT_WAIT: Duration = Duration::from_secs(10);

/// The length of the chunks that are passed on.
const CHUNK_BYTES: usize = 64 << 10;

/// Chunks that wait for the client.
const CHUNKS_MAX: usize = 4;

/// Of a longer line, only so many bytes are shown around another line.
const LINE_BYTES_MAX: usize = 1024;

/// Why a text could not be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum TextError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Busy(#[from] QueryError),
    #[error("the file was replaced or deleted while it was opened; retry")]
    Gone,
    #[error("the bytes in the raw store could not be read")]
    Store(#[source] io::Error),
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A range of bytes of the text.
    Bytes(Range<u64>),
    /// Lines of the text: the number of the first, from 1, and how many.
    Lines(u64, Option<u64>),
    /// The bytes as they were uploaded, without the content encoding.
    Raw,
}

/// The lines before and after a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The lines before it, in order.
    pub before: Vec<Arc<str>>,
    /// The lines after it.
    pub after: Vec<Arc<str>>,
}

/// Reads texts. Clones share the permits.
#[derive(Clone)]
pub struct Texts {
    metadata: Metadata,
    raw: RawStore,
    admission: Admission,
}

impl Texts {
    /// Reads from `raw` what `metadata` names.
    pub fn new(metadata: Metadata, raw: RawStore) -> Texts {
        Texts { metadata, raw, admission: Admission::new(READ_MAX, WAITING_MAX, PERMIT_WAIT) }
    }

    /// Reads a part of a file. The chunks end early with an error if the file is damaged, or deleted meanwhile.
    pub async fn read(&self, file: StoredFile, part: Part) -> Result<mpsc::Receiver<io::Result<Bytes>>, TextError> {
        let permit = self.admission.take().await?;
        let stored = self.open(file).await?;
        let (to, chunks) = mpsc::channel(CHUNKS_MAX);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut send = |chunk: &[u8]| to.blocking_send(Ok(Bytes::copy_from_slice(chunk))).is_ok();
            if let Err(error) = copy_part(stored, &part, &mut send) {
                tracing::warn!(%error, "a stored file could not be read to its end");
                // The client may have left.
                let _ = to.blocking_send(Err(error));
            }
        });
        Ok(chunks)
    }

    /// The lines around some lines of a file, by their numbers.
    pub async fn around(
        &self,
        file: StoredFile,
        lines: Vec<u64>,
        context: usize,
    ) -> Result<HashMap<u64, Surroundings>, TextError> {
        let permit = self.admission.take().await?;
        let stored = self.open(file).await?;
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let (_, text) = stored.into_text()?;
            surroundings(BufReader::with_capacity(CHUNK_BYTES, text), lines, context)
        });
        read.await.map_err(io::Error::other).flatten().map_err(TextError::Store)
    }

    async fn open(&self, file: StoredFile) -> Result<StoredBytes, TextError> {
        match stored_file::open(&self.metadata, &self.raw, file).await? {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(TextError::Gone),
            opened => opened.map_err(TextError::Store),
        }
    }
}

/// Passes on a part until `send` refuses.
fn copy_part(stored: StoredBytes, part: &Part, send: &mut impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    match part {
        Part::Raw => {
            for source in stored.object.into_iter().chain(stored.appended) {
                copy(BufReader::with_capacity(CHUNK_BYTES, source), send)?;
            }
            Ok(())
        }
        Part::Bytes(range) => {
            let (_, mut text) = stored.into_text()?;
            io::copy(&mut text.by_ref().take(range.start), &mut io::sink())?;
            copy(BufReader::with_capacity(CHUNK_BYTES, text.take(range.end - range.start)), send)
        }
        Part::Lines(from, count) => {
            let (_, text) = stored.into_text()?;
            copy_lines(BufReader::with_capacity(CHUNK_BYTES, text), from.saturating_sub(1), *count, send)
        }
    }
}

fn copy(mut from: impl BufRead, send: &mut impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    loop {
        let chunk = from.fill_buf()?;
        let length = chunk.len();
        if length == 0 || !send(chunk) {
            return Ok(());
        }
        from.consume(length);
    }
}

/// Passes on `count` lines after the first `skip` lines.
fn copy_lines(
    mut from: impl BufRead,
    mut skip: u64,
    mut count: Option<u64>,
    send: &mut impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    loop {
        let chunk = from.fill_buf()?;
        let length = chunk.len();
        if length == 0 {
            return Ok(());
        }
        let start = after_lines(chunk, &mut skip);
        let end = match &mut count {
            _ if skip > 0 => start,
            Some(count) => start + after_lines(&chunk[start..], count),
            None => length,
        };
        if end > start && !send(&chunk[start..end]) {
            return Ok(());
        }
        if skip == 0 && count == Some(0) {
            return Ok(());
        }
        from.consume(length);
    }
}

/// The end of the first `lines` lines, from which those that end in the chunk are subtracted.
fn after_lines(chunk: &[u8], lines: &mut u64) -> usize {
    let mut end = 0;
    while *lines > 0 {
        match memchr::memchr(b'\n', &chunk[end..]) {
            Some(feed) => end += feed + 1,
            None => return chunk.len(),
        }
        *lines -= 1;
    }
    end
}

/// The lines around each of `wanted`.
fn surroundings(
    mut text: impl BufRead,
    mut wanted: Vec<u64>,
    context: usize,
) -> io::Result<HashMap<u64, Surroundings>> {
    wanted.sort_unstable();
    wanted.dedup();
    let mut found: HashMap<u64, Surroundings> = HashMap::new();
    let mut before: VecDeque<Arc<str>> = VecDeque::new();
    // The wanted lines whose following lines are not complete.
    let mut open: VecDeque<u64> = VecDeque::new();
    let mut next = wanted.into_iter().peekable();
    let mut number = 0;
    let mut line = Vec::new();
    while next.peek().is_some() || !open.is_empty() {
        number += 1;
        if !read_line(&mut text, &mut line)? {
            break;
        }
        let is_far = open.is_empty() && next.peek().is_some_and(|wanted| number + (context as u64) < *wanted);
        if is_far {
            continue;
        }
        let shown: Arc<str> = String::from_utf8_lossy(&line).into();
        open.retain(|wanted| {
            let after = &mut found.entry(*wanted).or_default().after;
            after.push(Arc::clone(&shown));
            after.len() < context
        });
        if next.next_if_eq(&number).is_some() {
            found.insert(number, Surroundings { before: before.iter().cloned().collect(), after: Vec::new() });
            if context > 0 {
                open.push_back(number);
            }
        }
        before.push_back(shown);
        if before.len() > context {
            before.pop_front();
        }
    }
    Ok(found)
}

/// Reads a line without its end, and cuts it. Returns `false` at the end of the text.
fn read_line(text: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut is_any = false;
    loop {
        let chunk = text.fill_buf()?;
        if chunk.is_empty() {
            return Ok(is_any);
        }
        is_any = true;
        let feed = memchr::memchr(b'\n', chunk);
        let end = feed.unwrap_or(chunk.len());
        let room = LINE_BYTES_MAX - line.len();
        line.extend_from_slice(&chunk[..end.min(room)]);
        text.consume(end + usize::from(feed.is_some()));
        if feed.is_some() {
            if line.ends_with(b"\r") {
                line.pop();
            }
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, skip: u64, count: Option<u64>) -> String {
        // Chunks of every size, as lines may end anywhere in them.
        let results: Vec<String> = (1..=text.len().max(1))
            .map(|size| {
                let mut copied = Vec::new();
                let from = BufReader::with_capacity(size, text.as_bytes());
                let mut send = |chunk: &[u8]| {
                    copied.extend_from_slice(chunk);
                    true
                };
                copy_lines(from, skip, count, &mut send).expect("reads from memory");
                String::from_utf8(copied).expect("text")
            })
            .collect();
        assert!(results.iter().all(|result| result == &results[0]), "{results:?}");
        results[0].clone()
    }

    #[test]
    fn lines_are_copied_from_any_line_on() {
        let text = "one\ntwo\n\nfour";
        assert_eq!(lines(text, 0, None), text);
        assert_eq!(lines(text, 1, Some(2)), "two\n\n");
        assert_eq!(lines(text, 3, Some(9)), "four");
        assert_eq!(lines(text, 2, Some(0)), "");
        assert_eq!(lines(text, 4, None), "");
        assert_eq!(lines("", 0, None), "");
    }

    fn around(text: &str, wanted: &[u64], context: usize) -> Vec<(u64, String, String)> {
        let found = surroundings(text.as_bytes(), wanted.to_vec(), context).expect("reads from memory");
        let mut found: Vec<_> = found
            .into_iter()
            .map(|(line, Surroundings { before, after })| (line, before.join(" "), after.join(" ")))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn a_line_is_shown_with_its_neighbours() {
        let row = |line, before: &str, after: &str| (line, before.to_owned(), after.to_owned());
        let text = "1\n2\r\n3\n4\n5\n6\n7";
        assert_eq!(around(text, &[4], 2), [row(4, "2 3", "5 6")]);
        assert_eq!(around(text, &[1, 7], 3), [row(1, "", "2 3 4"), row(7, "4 5 6", "")]);
        // Neighbours may be wanted themselves.
        assert_eq!(around(text, &[3, 4, 4], 1), [row(3, "2", "4"), row(4, "3", "5")]);
        assert_eq!(around(text, &[9], 1), []);
    }

    #[test]
    fn a_long_line_is_cut() {
        let text = format!("{}\nshort\n", "x".repeat(5000));
        let found = around(&text, &[2], 1);
        assert_eq!(found[0].1.len(), LINE_BYTES_MAX);
    }
}
