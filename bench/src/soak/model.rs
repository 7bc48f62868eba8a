//! The expected state: for each batch and file the counts of its text, without the text.
//!
//! A request without a response leaves two possible states. The server must have one
//! of them, and the model adopts the one that is read.

use std::collections::BTreeMap;

use serde_json::Value;

/// The counts of some lines.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Bytes of text.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// Lines with at least one code.
    pub error_lines: u64,
    /// Occurrences by code, with the names in reports.
    pub codes: BTreeMap<String, u64>,
}

impl Counts {
    /// All occurrences.
    pub fn errors(&self) -> u64 {
        self.codes.values().sum()
    }

    /// Adds other counts.
    pub fn add(&mut self, other: &Counts) {
        self.bytes += other.bytes;
        self.lines += other.lines;
        self.error_lines += other.error_lines;
        for (code, count) in &other.codes {
            *self.codes.entry(code.clone()).or_default() += count;
        }
    }
}

/// A last line without a line feed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OpenLine {
    counts: Counts,
    /// Whether it is counted: after an upload or a completion, but not after an append.
    counted: bool,
}

/// The expected counts of a file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FileModel {
    whole: Counts,
    open: Option<OpenLine>,
    /// Approximate bytes that the server stores for it.
    pub stored: u64,
    /// Appended bytes of text, which the metadata database stores until there are enough for an object.
    pub appended: u64,
}

impl FileModel {
    /// A file after an upload.
    pub fn uploaded(whole: &Counts, open: Option<&Counts>, stored: u64) -> FileModel {
        let open = open.map(|counts| OpenLine { counts: counts.clone(), counted: true });
        FileModel { whole: whole.clone(), open, stored, appended: 0 }
    }

    /// The file after an append: `rest_bytes` complete its open line, if it has one, followed by complete lines and
    /// possibly another open line.
    pub fn appended(&self, rest_bytes: u64, whole: &Counts, open: Option<&Counts>) -> FileModel {
        let mut file = self.clone();
        if let Some(mut line) = file.open.take() {
            line.counts.bytes += rest_bytes;
            file.whole.add(&line.counts);
        }
        file.whole.add(whole);
        file.open = open.map(|counts| OpenLine { counts: counts.clone(), counted: false });
        let more = file.bytes() - self.bytes();
        file.stored += more;
        file.appended += more;
        file
    }

    /// Whether its last line has no line feed.
    pub fn has_open_line(&self) -> bool {
        self.open.is_some()
    }

    /// All bytes of text, as `Upload-Offset` counts them.
    pub fn bytes(&self) -> u64 {
        self.whole.bytes + self.open.as_ref().map_or(0, |line| line.counts.bytes)
    }

    /// The counts that reports must contain.
    pub fn counted(&self) -> Counts {
        let mut counts = self.whole.clone();
        if let Some(line) = self.open.as_ref().filter(|line| line.counted) {
            counts.add(&line.counts);
        }
        counts
    }

    /// The same, without the fields that reports do not have for a file.
    fn reported(&self) -> Counts {
        Counts { error_lines: 0, ..self.counted() }
    }
}

/// A file name in a batch: its certain state, and a possible state after a request without a response.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Slot {
    sure: Option<FileModel>,
    maybe: Option<Option<FileModel>>,
}

/// The expected state of a batch.
#[derive(Debug, Clone)]
pub struct BatchModel {
    /// Its identifier, which sorts by age.
    pub id: String,
    /// Its vehicle.
    pub vin: String,
    /// Whether it is completed.
    pub completed: bool,
    files: BTreeMap<String, Slot>,
    /// A completion or a reopening had no response.
    status_in_doubt: bool,
    /// Its deletion had no response.
    deletion_in_doubt: bool,
    /// The number of kills when a request was sent that had no response.
    pub in_doubt_since: Option<u64>,
}

impl BatchModel {
    /// A new batch without files.
    pub fn new(id: String, vin: String) -> BatchModel {
        BatchModel {
            id,
            vin,
            completed: false,
            files: BTreeMap::new(),
            status_in_doubt: false,
            deletion_in_doubt: false,
            in_doubt_since: None,
        }
    }

    /// The files that certainly exist.
    pub fn files(&self) -> impl Iterator<Item = (&str, &FileModel)> {
        self.files.iter().filter_map(|(name, slot)| Some((name.as_str(), slot.sure.as_ref()?)))
    }

    /// A file.
    pub fn file(&self, name: &str) -> Option<&FileModel> {
        self.files.get(name)?.sure.as_ref()
    }

    /// Sets the certain state of a file.
    pub fn set(&mut self, name: &str, file: Option<FileModel>) {
        match file {
            Some(file) => drop(self.files.insert(name.to_owned(), Slot { sure: Some(file), maybe: None })),
            None => drop(self.files.remove(name)),
        }
    }

    /// Sets the possible state of a file after a request without a response.
    pub fn maybe_set(&mut self, name: &str, file: Option<FileModel>, killed: u64) {
        self.files.entry(name.to_owned()).or_default().maybe = Some(file);
        self.in_doubt_since = Some(killed);
    }

    /// Completes the batch: open lines are counted from now on.
    pub fn complete(&mut self) {
        self.completed = true;
        for slot in self.files.values_mut() {
            if let Some(line) = slot.sure.as_mut().and_then(|file| file.open.as_mut()) {
                line.counted = true;
            }
        }
    }

    /// The batch may have been completed or reopened.
    pub fn maybe_change_status(&mut self, killed: u64) {
        self.status_in_doubt = true;
        self.in_doubt_since = Some(killed);
    }

    /// The batch may have been deleted.
    pub fn maybe_delete(&mut self, killed: u64) {
        self.deletion_in_doubt = true;
        self.in_doubt_since = Some(killed);
    }

    /// Whether it may have been deleted.
    pub fn may_be_deleted(&self) -> bool {
        self.deletion_in_doubt
    }

    /// Resolves requests without a response from a report; fails if a state is neither of the two possible ones.
    pub fn settle(&mut self, status: &str, report: &Value) -> Result<(), String> {
        let completed = status != "pending";
        if completed != self.completed {
            if !self.status_in_doubt {
                return Err(format!("batch {} has status {status}, expected completed: {}", self.id, self.completed));
            }
            if completed {
                self.complete();
            }
            self.completed = completed;
        }
        for (name, slot) in &mut self.files {
            let Some(maybe) = slot.maybe.take() else { continue };
            let found = reported_file(report, name);
            let is = |file: &Option<FileModel>| file.as_ref().map(FileModel::reported) == found;
            if !is(&slot.sure) {
                if !is(&maybe) {
                    let states = [&slot.sure, &maybe].map(|file| file.as_ref().map(|file| summary(&file.counted())));
                    let found = found.as_ref().map(summary);
                    return Err(format!("batch {} file {name} is {found:?}, expected one of {states:?}", self.id));
                }
                slot.sure = maybe;
            }
        }
        self.files.retain(|_, slot| slot.sure.is_some());
        (self.status_in_doubt, self.deletion_in_doubt, self.in_doubt_since) = (false, false, None);
        Ok(())
    }

    /// The expected counts of all files.
    pub fn counted(&self) -> Counts {
        let mut sum = Counts::default();
        self.files().for_each(|(_, file)| sum.add(&file.counted()));
        sum
    }

    /// The differences between a report and the model.
    pub fn differences(&self, report: &Value) -> Vec<String> {
        let mut differences = Vec::new();
        let mut check = |what: String, is: Value, should: Value| {
            if is != should {
                differences.push(format!("batch {} {what}: is {is}, expected {should}", self.id));
            }
        };
        let counted = self.counted();
        for (name, should) in [
            ("total_bytes", counted.bytes),
            ("total_lines", counted.lines),
            ("error_lines", counted.error_lines),
            ("total_errors", counted.errors()),
            ("total_files", self.files().count() as u64),
        ] {
            check(name.to_owned(), report[name].clone(), should.into());
        }
        let codes = report["codes"].as_array().map_or(&[][..], Vec::as_slice);
        let codes = codes.iter().filter_map(|code| Some((code["code"].as_str()?.to_owned(), code["count"].as_u64()?)));
        first_difference(&codes.collect(), &counted.codes, |code, is, should| {
            check(format!("code {code}"), is.into(), should.into());
        });
        for (name, file) in self.files() {
            let should = file.counted();
            match reported_file(report, name) {
                None => check(format!("file {name}"), Value::Null, "a file".into()),
                Some(is) if is.codes != should.codes => {
                    first_difference(&is.codes, &should.codes, |code, is, should| {
                        check(format!("file {name} code {code}"), is.into(), should.into());
                    })
                }
                Some(is) => {
                    check(format!("file {name}"), summary(&is).into(), summary(&should).into());
                }
            }
        }
        differences
    }
}

/// Reports the first code whose counts differ.
pub fn first_difference(
    is: &BTreeMap<String, u64>,
    should: &BTreeMap<String, u64>,
    mut report: impl FnMut(&str, u64, u64),
) {
    let count = |map: &BTreeMap<String, u64>, code: &String| map.get(code).copied().unwrap_or(0);
    if let Some(code) = is.keys().chain(should.keys()).find(|code| count(is, code) != count(should, code)) {
        report(code, count(is, code), count(should, code));
    }
}

fn summary(counts: &Counts) -> String {
    format!("{} bytes, {} lines, {} errors", counts.bytes, counts.lines, counts.errors())
}

/// The counts of a file in a report, which has `error_lines` only for the batch.
fn reported_file(report: &Value, name: &str) -> Option<Counts> {
    let file = report["files"].as_array()?.iter().find(|file| file["name"] == name)?;
    let codes = file["codes"].as_object()?;
    Some(Counts {
        bytes: file["bytes"].as_u64()?,
        lines: file["lines"].as_u64()?,
        error_lines: 0,
        codes: codes.iter().filter_map(|(code, count)| Some((code.clone(), count.as_u64()?))).collect(),
    })
}

/// The amount of live data.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Alive {
    /// Batches.
    pub batches: u64,
    /// Files.
    pub files: u64,
    /// Bytes of text.
    pub text: u64,
    /// Approximate stored bytes.
    pub stored: u64,
    /// Appended bytes of text.
    pub appended: u64,
}

/// All live batches that no client is currently changing.
#[derive(Debug, Default)]
pub struct Model {
    batches: BTreeMap<String, BatchModel>,
}

impl Model {
    /// The amount of live data.
    pub fn alive(&self) -> Alive {
        let mut alive = Alive { batches: self.batches.len() as u64, ..Alive::default() };
        for (_, file) in self.batches.values().flat_map(BatchModel::files) {
            alive.files += 1;
            alive.text += file.bytes();
            alive.stored += file.stored;
            alive.appended += file.appended;
        }
        alive
    }

    /// Takes out a batch to change it: the first changeable one from an index on. A batch in doubt is changeable
    /// only after the server has been killed again.
    pub fn take(&mut self, index: u64, killed: u64) -> Option<BatchModel> {
        let start = index as usize % self.batches.len().max(1);
        let order = self.batches.values().skip(start).chain(self.batches.values().take(start));
        let mut ready = order.filter(|batch| batch.in_doubt_since.is_none_or(|since| since < killed));
        let id = ready.next()?.id.clone();
        self.batches.remove(&id)
    }

    /// Takes out a batch that is in doubt, even if the server was not killed since.
    pub fn take_in_doubt(&mut self) -> Option<BatchModel> {
        let id = self.batches.values().find(|batch| batch.in_doubt_since.is_some())?.id.clone();
        self.batches.remove(&id)
    }

    /// Inserts or returns a batch.
    pub fn put(&mut self, batch: BatchModel) {
        self.batches.insert(batch.id.clone(), batch);
    }

    /// The identifier and the vehicle of a batch.
    pub fn some(&self, index: u64) -> Option<(String, String)> {
        let batch = self.batches.values().nth(index as usize % self.batches.len().max(1))?;
        Some((batch.id.clone(), batch.vin.clone()))
    }

    /// All batches.
    pub fn batches(&self) -> impl Iterator<Item = &BatchModel> {
        self.batches.values()
    }

    /// The expected counts of all batches.
    pub fn counted(&self) -> Counts {
        let mut sum = Counts::default();
        self.batches().for_each(|batch| sum.add(&batch.counted()));
        sum
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(count: u64) -> Counts {
        let codes = BTreeMap::from([("E_FAIL".to_owned(), count)]);
        Counts { bytes: count * 7, lines: count, error_lines: count, codes }
    }

    fn report(files: &[(&str, u64)]) -> Value {
        let total: u64 = files.iter().map(|(_, count)| count).sum();
        let file = |(name, count): &(&str, u64)| json!({"name": name, "bytes": count * 7, "lines": count, "errors": count, "codes": {"E_FAIL": count}});
        json!({
            "total_bytes": total * 7, "total_lines": total, "error_lines": total, "total_errors": total,
            "total_files": files.len(), "codes": [{"code": "E_FAIL", "count": total}],
            "files": files.iter().map(file).collect::<Vec<_>>(),
        })
    }

    #[test]
    fn a_difference_in_one_file_is_found() {
        let mut batch = BatchModel::new("b".to_owned(), "v".to_owned());
        batch.set("a.log", Some(FileModel::uploaded(&lines(3), None, 21)));
        batch.set("c.log", Some(FileModel::uploaded(&lines(2), None, 14)));
        assert_eq!(batch.differences(&report(&[("a.log", 3), ("c.log", 2)])), Vec::<String>::new());
        assert_ne!(batch.differences(&report(&[("a.log", 2), ("c.log", 3)])), Vec::<String>::new());
        assert_ne!(batch.differences(&report(&[("a.log", 3)])), Vec::<String>::new());
    }

    #[test]
    fn a_request_without_a_response_is_resolved_to_one_of_two_states() {
        let mut batch = BatchModel::new("b".to_owned(), "v".to_owned());
        batch.set("a.log", Some(FileModel::uploaded(&lines(3), None, 21)));
        batch.maybe_set("a.log", Some(FileModel::uploaded(&lines(5), None, 35)), 0);
        batch.maybe_set("new.log", Some(FileModel::uploaded(&lines(1), None, 7)), 0);
        let mut other = batch.clone();
        assert!(batch.clone().settle("pending", &report(&[("a.log", 4)])).is_err());
        assert!(batch.clone().settle("completed", &report(&[("a.log", 3)])).is_err());
        batch.settle("pending", &report(&[("a.log", 5), ("new.log", 1)])).expect("both happened");
        assert_eq!(batch.counted(), lines(6));
        other.settle("pending", &report(&[("a.log", 3)])).expect("neither happened");
        assert_eq!((other.counted(), other.files().count()), (lines(3), 1));
    }

    #[test]
    fn an_open_line_counts_when_it_was_uploaded_or_its_batch_completed() {
        let mut batch = BatchModel::new("b".to_owned(), "v".to_owned());
        let uploaded = FileModel::uploaded(&lines(2), Some(&lines(1)), 21);
        assert_eq!(uploaded.counted(), lines(3));
        let appended = uploaded.appended(0, &lines(4), Some(&lines(1)));
        assert_eq!((appended.counted(), appended.bytes()), (lines(7), 56));
        batch.set("a.log", Some(appended));
        batch.complete();
        assert_eq!(batch.counted(), lines(8));
    }

    #[test]
    fn a_batch_in_doubt_is_not_changed_before_the_server_is_killed_again() {
        let mut model = Model::default();
        let mut batch = BatchModel::new("b".to_owned(), "v".to_owned());
        batch.maybe_delete(3);
        model.put(batch);
        assert!(model.take(7, 3).is_none());
        assert!(model.take(7, 4).is_some_and(|batch| batch.may_be_deleted()));
    }
}
