//! The dataflow.
//!
//! ```text
//!  blocks ──► scan ──(version, fold)──► admit ──(row, epoch, n)──┬────────► consolidate ──► close ──► closed epochs
//!              │                          ▲                      └► fleet ──────┘                     whole, in order
//!              └─► sightings          changes
//! ```
//!
//! 1. A block may be scanned on any worker and in any epoch up to the one that
//!    admits its generation; `admit` holds folded counts and no lines.
//! 2. `admit` handles the changes of an epoch when no block of that epoch can
//!    arrive any more: everything that was fed before the change is in the fold.
//!    A version with a line that could not be searched has no codes, and its row says so.
//! 3. `fleet` keeps what all batches together say, and adds what changes of it.
//! 4. `close` emits an epoch when its frontier has passed it: never a part of
//!    one, never one before another.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::{AsCollection, VecCollection};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Input;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::{InputHandle, Scope, StreamVec};
use tokio::sync::mpsc::UnboundedSender;

use crate::blocks::TextBlock;
use crate::fleet;
use crate::fold::{CodeLimits, Fold, FoldKey, OpenFold};
use crate::handle::{InFlight, Output};
use crate::rows::{Change, ClosedEpoch, CountRow, FileRow, Origin, Row, VersionId};
use crate::scan::{ScannedBlock, Scanner};

/// A block on its way to the scan.
#[derive(Debug, Clone)]
pub struct Block {
    /// Where it is from.
    pub origin: Arc<Origin>,
    /// The lines.
    pub text: Arc<TextBlock>,
    /// The room it takes, given back when its sightings have been read.
    pub(crate) room: Arc<InFlight>,
}

/// The two ways into the dataflow of one worker.
pub struct Inputs {
    /// Blocks, which any worker may take.
    pub blocks: InputHandle<u64, CapacityContainerBuilder<Vec<Block>>>,
    /// Changes, which only the first worker takes, so that their order holds.
    pub changes: InputHandle<u64, CapacityContainerBuilder<Vec<Change>>>,
}

type Update = (Row, u64, i64);

/// Builds the dataflow on this worker. The epochs that close are those behind
/// `closed`, up to the last that is `sealed`. Sightings leave where they are wanted.
pub fn build(
    scope: Scope<'_, u64>,
    scanner: Scanner,
    closed: u64,
    sealed: Rc<Cell<u64>>,
    outputs: UnboundedSender<Output>,
    sightings_wanted: bool,
    limits: CodeLimits,
) -> Inputs {
    let (blocks_in, blocks) = scope.new_input();
    let (changes_in, changes) = scope.new_input();

    let rules = Arc::clone(scanner.rules().fingerprint());
    let folds = scan(blocks, scanner, sightings_wanted.then(|| outputs.clone()), limits);
    let rows = admit(folds, changes, limits, rules);
    let fleet = fleet::fleet(rows.clone());
    let rows = rows.as_collection().filter(|row| !matches!(row, Row::Recalled(_) | Row::Loaded(_)));
    close(rows.concat(fleet).consolidate(), closed, sealed, outputs);

    Inputs { blocks: blocks_in, changes: changes_in }
}

/// Searches blocks. Sightings, where they are wanted, leave at once; what the
/// blocks of a version add up to goes on when their epoch ends.
fn scan<'s>(
    blocks: StreamVec<'s, u64, Block>,
    mut scanner: Scanner,
    sightings: Option<UnboundedSender<Output>>,
    limits: CodeLimits,
) -> StreamVec<'s, u64, (VersionId, Fold)> {
    blocks.unary_frontier::<CapacityContainerBuilder<_>, _, _, _>(Pipeline, "Scan", |_, _| {
        let mut open: BTreeMap<u64, (_, HashMap<VersionId, OpenFold>)> = BTreeMap::new();
        move |(input, frontier), output| {
            input.for_each(|time, blocks| {
                // Epochs are totally ordered, so a message has exactly one.
                let Some(&epoch) = time.least() else { return };
                let (_, folds) = open.entry(epoch).or_insert_with(|| (time.delayed(&epoch, 0), HashMap::new()));
                for Block { origin, text, room } in blocks.drain(..) {
                    let fold = folds.entry(origin.version).or_insert_with(|| OpenFold::new(limits));
                    let Some(outputs) = &sightings else {
                        scanner.scan_or_fail(&text, origin.uploaded_at, fold, None);
                        continue;
                    };
                    let mut seen = Vec::new();
                    scanner.scan_or_fail(&text, origin.uploaded_at, fold, Some(&mut seen));
                    // Its memory is for the next block, whoever still reads the sightings.
                    drop(text);
                    if !seen.is_empty() {
                        // Without a reader there is nobody to count for.
                        let _ = outputs.send(Output::Scanned(ScannedBlock { origin, sightings: seen, _room: room }));
                    }
                }
            });
            while let Some(entry) = open.first_entry() {
                if frontier.less_equal(entry.key()) {
                    break;
                }
                let (capability, folds) = entry.remove();
                let mut session = output.session(&capability);
                let folds = folds.into_iter().filter(|(_, fold)| !fold.is_empty());
                folds.for_each(|(version, fold)| session.give((version, fold.close())));
            }
        }
    })
}

/// Turns the changes of an epoch into rows, with what the folds hold of the generations they admit.
fn admit<'s>(
    folds: StreamVec<'s, u64, (VersionId, Fold)>,
    changes: StreamVec<'s, u64, Change>,
    limits: CodeLimits,
    rules: Arc<str>,
) -> StreamVec<'s, u64, Update> {
    let by_version = Exchange::new(|(version, _): &(VersionId, Fold)| route(*version));
    let by_change = Exchange::new(|change: &Change| change.version().map_or(0, route));
    folds.binary_frontier::<_, CapacityContainerBuilder<_>, _, _, _, _>(
        changes,
        by_version,
        by_change,
        "Admit",
        |_, _| {
            let mut held: HashMap<VersionId, Fold> = HashMap::new();
            let mut waiting = BTreeMap::new();
            move |(folds, folds_frontier), (changes, _), output| {
                folds.for_each(|_, arrived| {
                    for (version, fold) in arrived.drain(..) {
                        held.entry(version).or_default().merge(fold, limits);
                    }
                });
                changes.for_each(|time, arrived| {
                    // Epochs are totally ordered, so a message has exactly one.
                    let Some(&epoch) = time.least() else { return };
                    let (_, list) = waiting.entry(epoch).or_insert_with(|| (time.delayed(&epoch, 0), Vec::new()));
                    list.append(arrived);
                });
                while let Some(entry) = waiting.first_entry() {
                    let epoch = *entry.key();
                    if folds_frontier.less_equal(&epoch) {
                        break;
                    }
                    let (capability, changes) = entry.remove();
                    let mut session = output.session(&capability);
                    for change in changes {
                        rows_of(change, &mut held, &rules, |row, count| session.give((row, epoch, count)));
                    }
                }
            }
        },
    )
}

fn route(version: VersionId) -> u64 {
    // The low half of a UUIDv7 is random.
    version.0.as_u64_pair().1
}

fn rows_of(change: Change, held: &mut HashMap<VersionId, Fold>, rules: &str, mut give: impl FnMut(Row, i64)) {
    match change {
        Change::Batch(row) => give(Row::Batch(row), 1),
        Change::Withdraw(row) => give(Row::File(row), 1),
        Change::Recall(recall) => give(Row::Recalled(recall), 1),
        Change::Load(cells) => cells.into_iter().for_each(|cell| give(Row::Loaded(cell), 1)),
        Change::Abandon(version) => {
            held.remove(&version);
            give(Row::Abandoned(version), 1);
        }
        Change::Admit(mut file) => {
            let mut fold = held.remove(&file.version).unwrap_or_default();
            if let Some(line) = fold.failed_line {
                file.failure.get_or_insert_with(|| format!("line {line} could not be searched"));
            }
            if file.failure.is_some() {
                fold = Fold::default();
            }
            file.rules = Some(rules.to_owned());
            file.error_lines = fold.error_lines;
            (file.first_ts, file.last_ts) = fold.times.span();
            let FileRow { batch_id, version, name, .. } = &file;
            let mut sightings = 0;
            for (FoldKey { rule, code, component, severity, active }, seen) in fold.codes {
                sightings += seen.count;
                let row = CountRow {
                    batch_id: *batch_id,
                    version: *version,
                    file: name.clone(),
                    component,
                    code,
                    rule,
                    severity,
                    active,
                    first_seen: seen.first_seen,
                    last_seen: seen.last_seen,
                    example_line: seen.example_line,
                    example_text: seen.example_text,
                };
                give(Row::Count(row), seen.count as i64);
            }
            file.sightings = sightings;
            give(Row::File(file), 1);
        }
    }
}

/// Gathers the updates of each epoch and emits the epoch when the frontier has passed it.
fn close(rows: VecCollection<'_, u64, Row, i64>, closed: u64, sealed: Rc<Cell<u64>>, outputs: UnboundedSender<Output>) {
    // One worker gathers, so that its frontier alone decides.
    let to_first_worker = Exchange::new(|_: &Update| 0);
    let is_first_worker = rows.scope().index() == 0;
    rows.inner.sink(to_first_worker, "Close", {
        let mut gathered: BTreeMap<u64, Vec<(Row, i64)>> = BTreeMap::new();
        let mut next = closed + 1;
        move |(input, frontier)| {
            input.for_each(|_, updates| {
                for (row, epoch, count) in updates.drain(..) {
                    gathered.entry(epoch).or_default().push((row, count));
                }
            });
            if !is_first_worker {
                return;
            }
            // At the end the frontier is empty, and what was never sealed never closes.
            let open = frontier.frontier().first().copied().unwrap_or_else(|| sealed.get() + 1);
            // Empty epochs close too: readers take a gap in the numbers for lost data.
            while next < open {
                let mut rows = gathered.remove(&next).unwrap_or_default();
                rows.sort();
                let _ = outputs.send(Output::Closed(ClosedEpoch { epoch: next, rows }));
                next += 1;
            }
        }
    });
}
