//! The dataflow.
//!
//! ```text
//!  blocks ─► scan ─(version, partial)─► admit ─(row, epoch, n)─┬───────────► consolidate ─► close ─► closed epochs
//!             │                           ▲                    └► fleet ─┘                           whole, in order
//!             └► occurrences           changes
//! ```
//!
//! 1. A block may be scanned on any worker and in any epoch up to the one that
//!    admits its version; `admit` stores partial counts, not lines.
//! 2. `admit` applies the changes of an epoch once no block of that epoch can
//!    arrive: the partial counts then include every block inserted before the change.
//!    A version with a line that could not be searched has no codes; its row records the failure.
//! 3. `fleet` maintains the counts over all batches and emits their changes.
//! 4. `close` emits an epoch when its frontier has passed it: always whole,
//!    always in order.

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

use crate::counts::changes::{Change, ClosedEpoch, Row};
use crate::counts::fleet;
use crate::counts::partial::{CodeLimits, CountKey, OpenCounts, PartialCounts};
use crate::counts::rows::{CountRow, FileRow, Origin, VersionId};
use crate::output::{InFlight, Output, ScannedBlock};
use crate::scan::Scanner;
use crate::text::blocks::TextBlock;

/// A block to scan.
#[derive(Debug, Clone)]
pub struct Block {
    /// The file and version of its lines.
    pub origin: Arc<Origin>,
    /// The lines, or what another process has counted in them.
    pub content: Content,
    /// Its bytes in flight, released when its occurrences have been read.
    pub(crate) in_flight: Arc<InFlight>,
}

/// The content of a block.
#[derive(Debug, Clone)]
pub enum Content {
    /// Lines to scan.
    Text(Arc<TextBlock>),
    /// The counts of lines that another process has scanned.
    Counted(Box<PartialCounts>),
}

/// The two inputs of the dataflow on one worker.
pub struct Inputs {
    /// Blocks; any worker may take them.
    pub blocks: InputHandle<u64, CapacityContainerBuilder<Vec<Block>>>,
    /// Changes; only the first worker's input gets them, which preserves their order.
    pub changes: InputHandle<u64, CapacityContainerBuilder<Vec<Change>>>,
}

type Update = (Row, u64, i64);

/// Builds the dataflow on this worker. It emits the epochs after `closed`, up to
/// `last_advanced`, and the occurrences if they are wanted.
pub fn build(
    scope: Scope<'_, u64>,
    scanner: Scanner,
    closed: u64,
    last_advanced: Rc<Cell<u64>>,
    outputs: UnboundedSender<Output>,
    occurrences_wanted: bool,
    limits: CodeLimits,
) -> Inputs {
    let (blocks_in, blocks) = scope.new_input();
    let (changes_in, changes) = scope.new_input();

    let rules = Arc::clone(scanner.rules().fingerprint());
    let partials = scan(blocks, scanner, occurrences_wanted.then(|| outputs.clone()), limits);
    let rows = admit(partials, changes, limits, rules);
    let fleet = fleet::fleet(rows.clone());
    let rows = rows.as_collection().filter(|row| !matches!(row, Row::LoadedBatch(_) | Row::RestoredCell(_)));
    close(rows.concat(fleet).consolidate(), closed, last_advanced, outputs);

    Inputs { blocks: blocks_in, changes: changes_in }
}

/// Builds a dataflow that only scans: it emits the counts of the blocks of each epoch, and the end of the epoch.
pub fn build_scan(
    scope: Scope<'_, u64>,
    scanner: Scanner,
    closed: u64,
    last_advanced: Rc<Cell<u64>>,
    outputs: UnboundedSender<Output>,
    limits: CodeLimits,
) -> Inputs {
    let (blocks_in, blocks) = scope.new_input();
    // There are no changes: nothing is admitted.
    let (changes_in, _) = scope.new_input();
    let partials = scan(blocks, scanner, Some(outputs.clone()), limits);
    let counted = partials.unary::<CapacityContainerBuilder<Vec<Update>>, _, _, _>(
        Exchange::new(|_: &(VersionId, PartialCounts)| 0),
        "Counted",
        |_, _| {
            let outputs = outputs.clone();
            move |input, _| {
                input.for_each(|_, partials| {
                    for (version, counts) in partials.drain(..) {
                        // Fails only if the receiver of the outputs is gone.
                        let _ = outputs.send(Output::Counted(version, counts));
                    }
                });
            }
        },
    );
    // There are no rows: only the frontier passes on.
    close(counted.as_collection(), closed, last_advanced, outputs);
    Inputs { blocks: blocks_in, changes: changes_in }
}

/// Scans blocks. Emits occurrences at once, if they are wanted, and the partial
/// counts of each version when the epoch ends.
fn scan<'s>(
    blocks: StreamVec<'s, u64, Block>,
    mut scanner: Scanner,
    occurrences: Option<UnboundedSender<Output>>,
    limits: CodeLimits,
) -> StreamVec<'s, u64, (VersionId, PartialCounts)> {
    blocks.unary_frontier::<CapacityContainerBuilder<_>, _, _, _>(Pipeline, "Scan", |_, _| {
        let mut open: BTreeMap<u64, (_, HashMap<VersionId, OpenCounts>)> = BTreeMap::new();
        move |(input, frontier), output| {
            input.for_each(|time, blocks| {
                // Epochs are totally ordered, so a message has exactly one.
                let Some(&epoch) = time.least() else { return };
                let (_, partials) = open.entry(epoch).or_insert_with(|| (time.delayed(&epoch, 0), HashMap::new()));
                for Block { origin, content, in_flight } in blocks.drain(..) {
                    let partial = partials.entry(origin.version).or_insert_with(|| OpenCounts::new(limits));
                    let text = match content {
                        Content::Text(text) => text,
                        Content::Counted(counts) => {
                            partial.merge(*counts);
                            continue;
                        }
                    };
                    let Some(outputs) = &occurrences else {
                        scanner.scan_or_fail(&text, origin.uploaded_at, partial, None);
                        continue;
                    };
                    let mut seen = Vec::new();
                    scanner.scan_or_fail(&text, origin.uploaded_at, partial, Some(&mut seen));
                    // The reader reuses its memory at once, even if the occurrences are read later.
                    drop(text);
                    if !seen.is_empty() {
                        let scanned = ScannedBlock { origin, occurrences: seen, _in_flight: in_flight };
                        // Fails only if the receiver of the outputs is gone.
                        let _ = outputs.send(Output::Scanned(scanned));
                    }
                }
            });
            while let Some(entry) = open.first_entry() {
                if frontier.less_equal(entry.key()) {
                    break;
                }
                let (capability, partials) = entry.remove();
                let mut session = output.session(&capability);
                let partials = partials.into_iter().filter(|(_, partial)| !partial.is_empty());
                partials.for_each(|(version, partial)| session.give((version, partial.close())));
            }
        }
    })
}

/// Turns the changes of an epoch into rows, with the partial counts of the versions that they admit.
fn admit<'s>(
    partials: StreamVec<'s, u64, (VersionId, PartialCounts)>,
    changes: StreamVec<'s, u64, Change>,
    limits: CodeLimits,
    rules: Arc<str>,
) -> StreamVec<'s, u64, Update> {
    let by_version = Exchange::new(|(version, _): &(VersionId, PartialCounts)| route(*version));
    let by_change = Exchange::new(|change: &Change| change.version().map_or(0, route));
    partials.binary_frontier::<_, CapacityContainerBuilder<_>, _, _, _, _>(
        changes,
        by_version,
        by_change,
        "Admit",
        |_, _| {
            let mut pending: HashMap<VersionId, PartialCounts> = HashMap::new();
            let mut waiting = BTreeMap::new();
            move |(partials, partials_frontier), (changes, _), output| {
                partials.for_each(|_, arrived| {
                    for (version, partial) in arrived.drain(..) {
                        pending.entry(version).or_default().merge(partial, limits);
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
                    if partials_frontier.less_equal(&epoch) {
                        break;
                    }
                    let (capability, changes) = entry.remove();
                    let mut session = output.session(&capability);
                    for change in changes {
                        rows_of(change, &mut pending, &rules, |row, count| session.give((row, epoch, count)));
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

fn rows_of(
    change: Change,
    pending: &mut HashMap<VersionId, PartialCounts>,
    rules: &str,
    mut give: impl FnMut(Row, i64),
) {
    match change {
        Change::Batch(row) => give(Row::Batch(row), 1),
        Change::Withdraw(row) => give(Row::File(row), 1),
        Change::LoadBatch(batch) => give(Row::LoadedBatch(batch), 1),
        Change::RestoreCells(cells) => cells.into_iter().for_each(|cell| give(Row::RestoredCell(cell), 1)),
        Change::Abandon(version) => {
            pending.remove(&version);
            give(Row::Abandoned(version), 1);
        }
        Change::Admit(mut file) => {
            let mut partial = pending.remove(&file.version).unwrap_or_default();
            if let Some(line) = partial.failed_line {
                file.failure.get_or_insert_with(|| format!("line {line} could not be searched"));
            }
            if file.failure.is_some() {
                partial = PartialCounts::default();
            }
            file.rules = Some(rules.to_owned());
            file.error_lines = partial.error_lines;
            (file.first_ts, file.last_ts) = partial.times.span();
            let FileRow { batch_id, version, name, .. } = &file;
            let mut occurrences = 0;
            for (CountKey { rule, code, component, severity, active }, seen) in partial.codes {
                occurrences += seen.count;
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
            file.occurrences = occurrences;
            give(Row::File(file), 1);
        }
    }
}

/// Collects the updates of each epoch and emits the epoch when the frontier has passed it.
fn close(
    rows: VecCollection<'_, u64, Row, i64>,
    closed: u64,
    last_advanced: Rc<Cell<u64>>,
    outputs: UnboundedSender<Output>,
) {
    // One worker collects all updates, so its frontier alone decides.
    let to_first_worker = Exchange::new(|_: &Update| 0);
    let is_first_worker = rows.scope().index() == 0;
    rows.inner.sink(to_first_worker, "Close", {
        let mut collected: BTreeMap<u64, Vec<(Row, i64)>> = BTreeMap::new();
        let mut next = closed + 1;
        move |(input, frontier)| {
            input.for_each(|_, updates| {
                for (row, epoch, count) in updates.drain(..) {
                    collected.entry(epoch).or_default().push((row, count));
                }
            });
            if !is_first_worker {
                return;
            }
            // When the inputs are closed, the frontier is empty; an epoch that was never advanced does not close.
            let open = frontier.frontier().first().copied().unwrap_or_else(|| last_advanced.get() + 1);
            // Empty epochs close too: to readers, a gap in the epoch numbers means lost data.
            while next < open {
                let mut rows = collected.remove(&next).unwrap_or_default();
                rows.sort();
                let _ = outputs.send(Output::Closed(ClosedEpoch { epoch: next, rows }));
                next += 1;
            }
        }
    });
}
