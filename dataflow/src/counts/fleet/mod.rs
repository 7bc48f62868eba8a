//! The codes of the fleet, maintained as files are added and withdrawn.
//!
//! ```text
//!  rows ──► cells ──(cell, ±1)──► by group ──► reduce, by parts of the fleet ──► fleet rows
//!             │
//!             └─(cell, ±1)──► the lake
//! ```
//!
//! 1. A **cell** has the counts of one code (of one component, or of all) for one
//!    vehicle with one firmware. [`Cells`] keeps cells current: when a batch changes,
//!    its new contribution to its cells replaces the old one.
//! 2. A completed batch is **unloaded**: only its cells remain. Before the next change
//!    to it, it is **loaded** with its counts, which are read back from the tables, so
//!    state grows with cells and open batches and not with closed ones. The earliest
//!    and latest times of the other unloaded batches in its cells are loaded too,
//!    because a minimum or maximum cannot be subtracted.
//! 3. Differential computes the codes of a group (all vehicles with a firmware, of a
//!    platform, …): it reduces the group's cells in parts of the fleet, then the parts,
//!    so that a change of one vehicle touches few others.

mod cells;
pub mod rows;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use differential_dataflow::{AsCollection, VecCollection};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;

use self::cells::Cells;
pub use self::rows::{
    CellRow, FleetGroup, FleetRow, LoadedBatch, LoadedCount, LoadedVersion, Recorded, SeenRange, Subject, Totals,
    Vehicle,
};
use crate::counts::changes::Row;

/// Cells are first reduced in 2 to the power of this many parts of the fleet.
const PARTS_BITS: u32 = 12;
/// Each further reduction drops this many bits of the part numbers: 16 parts become one.
const FAN_IN_BITS: u32 = 4;

type Update<D> = (D, u64, i64);

/// Maintains cells and groups from the rows, and emits the changes of both.
pub fn fleet(rows: StreamVec<'_, u64, Update<Row>>) -> VecCollection<'_, u64, Row, i64> {
    let cells = cells(rows).as_collection();
    let changed = cells.clone().flat_map(|(cell, for_lake)| for_lake.then_some(Row::Cell(cell)));
    let groups = groups(cells.map(|(cell, _)| cell)).map(Row::Fleet);
    changed.concat(groups)
}

/// The cells that change, each with whether the lake needs the change: a restored cell is stored already.
fn cells(rows: StreamVec<'_, u64, Update<Row>>) -> StreamVec<'_, u64, Update<(CellRow, bool)>> {
    // One worker holds all cells: its input is aggregated already, and its output goes to one worker anyway.
    let to_first_worker = Exchange::new(|_: &Update<Row>| 0);
    rows.unary_frontier::<CapacityContainerBuilder<_>, _, _, _>(to_first_worker, "Cells", |_, _| {
        let mut cells = Cells::default();
        let mut waiting = BTreeMap::new();
        move |(input, frontier), output| {
            input.for_each(|time, arrived| {
                // Epochs are totally ordered, so a message has exactly one.
                let Some(&epoch) = time.least() else { return };
                let (_, list) = waiting.entry(epoch).or_insert_with(|| (time.delayed(&epoch, 0), Vec::new()));
                list.append(arrived);
            });
            while let Some(entry) = waiting.first_entry() {
                let epoch = *entry.key();
                if frontier.less_equal(&epoch) {
                    break;
                }
                let (capability, rows) = entry.remove();
                let mut session = output.session(&capability);
                let rows = rows.into_iter().map(|(row, _, count)| (row, count));
                cells.apply(rows, |cell, for_lake, diff| session.give(((cell, for_lake), epoch, diff)));
            }
        }
    })
}

/// The totals of the cells of each group.
fn groups<'s>(cells: VecCollection<'s, u64, CellRow, i64>) -> VecCollection<'s, u64, FleetRow, i64> {
    let members = cells.flat_map(|cell| {
        let CellRow { count, inactive, batches, seen, .. } = cell;
        let active_vehicles = u64::from(count > inactive);
        let totals = Totals { count, inactive, batches, vehicles: 1, active_vehicles, seen };
        let part = part_of(&cell.vehicle.vin);
        cell.groups().into_iter().map(move |(group, code)| ((group, code, part), (cell.vehicle.vin.clone(), totals)))
    });
    // A vehicle is in exactly one part, so the numbers of vehicles of parts can be added.
    let mut parts = members.reduce_named("Cells by part", |_, cells, out| {
        let vehicles = |active: bool| {
            let cells = cells.iter().filter(|((_, totals), _)| !active || totals.active_vehicles > 0);
            cells.map(|((vin, _), _)| vin.as_str()).collect::<HashSet<_>>().len() as u64
        };
        let (vehicles, active_vehicles) = (vehicles(false), vehicles(true));
        let totals = cells.iter().map(|((_, totals), _)| *totals).reduce(Totals::and);
        out.extend(totals.map(|totals| (Totals { vehicles, active_vehicles, ..totals }, 1)));
    });
    for _ in 0..PARTS_BITS / FAN_IN_BITS {
        let wider = parts.map(|((group, code, part), totals)| ((group, code, part >> FAN_IN_BITS), totals));
        parts = wider.reduce_named("Parts", |_, parts, out| {
            let totals = parts.iter().flat_map(|(totals, count)| (0..*count).map(|_| **totals)).reduce(Totals::and);
            out.extend(totals.map(|totals| (totals, 1)));
        });
    }
    parts.map(|((group, code, _), totals)| FleetRow { group, code, totals })
}

fn part_of(vin: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    vin.hash(&mut hasher);
    hasher.finish() as u32 & ((1 << PARTS_BITS) - 1)
}
