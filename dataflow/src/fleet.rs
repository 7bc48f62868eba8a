//! The fleet's codes, kept while files come and go.
//!
//! ```text
//!  rows ──► cells ──(cell, ±1)──► by group ──► reduce, by parts of the fleet ──► fleet rows
//!             │
//!             └─(cell, ±1)──► the lake
//! ```
//!
//! 1. A **cell** is what one vehicle with one firmware says of one code (of one
//!    component, or of all). [`Cells`] keeps them current: a batch that changes
//!    has its old contribution to its cells replaced by the new one.
//! 2. Of a batch at rest only the cells are left: it is **cold**. Before
//!    something happens to it, it is **recalled** with its counts, which are read
//!    back from the tables, so state grows with cells and open batches and never
//!    with closed ones. The earliest and latest times of the cold batches that
//!    stay in a cell come with it, for those cannot be subtracted.
//! 3. A group's codes (all vehicles with a firmware, of a platform, …) are
//!    differential's: its cells are reduced in parts of the fleet, then the parts,
//!    so that one vehicle's change touches few of the others.

mod cells;
mod rows;

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use differential_dataflow::{AsCollection, VecCollection};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;

use self::cells::Cells;
pub use self::rows::{
    CellRow, FleetRow, Group, Recall, RecalledCount, RecalledVersion, Recorded, Seen, Subject, Totals, Vehicle,
};
use crate::rows::Row;

/// Cells are first reduced in 2 to this power parts of the fleet.
const PARTS_BITS: u32 = 12;
/// So many bits of parts' numbers go with each reduction, 16 parts into one.
const FAN_IN_BITS: u32 = 4;

type Update<D> = (D, u64, i64);

/// Keeps cells and groups for the rows that enter and leave; says what changes of both.
pub fn fleet(rows: StreamVec<'_, u64, Update<Row>>) -> VecCollection<'_, u64, Row, i64> {
    let cells = cells(rows).as_collection();
    let changed = cells.clone().flat_map(|(cell, is_news)| is_news.then_some(Row::Cell(cell)));
    let groups = groups(cells.map(|(cell, _)| cell)).map(Row::Fleet);
    changed.concat(groups)
}

/// The cells that change, and whether the lake has yet to learn of it.
fn cells(rows: StreamVec<'_, u64, Update<Row>>) -> StreamVec<'_, u64, Update<(CellRow, bool)>> {
    // One worker keeps them: what it sees is folded, and goes to one worker later anyway.
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
                cells.apply(rows, |cell, is_news, diff| session.give(((cell, is_news), epoch, diff)));
            }
        }
    })
}

/// What the cells of each group come to.
fn groups<'s>(cells: VecCollection<'s, u64, CellRow, i64>) -> VecCollection<'s, u64, FleetRow, i64> {
    let members = cells.flat_map(|cell| {
        let CellRow { count, inactive, batches, seen, .. } = cell;
        let active_vehicles = u64::from(count > inactive);
        let totals = Totals { count, inactive, batches, vehicles: 1, active_vehicles, seen };
        let part = part_of(&cell.vehicle.vin);
        cell.groups().into_iter().map(move |(group, code)| ((group, code, part), (cell.vehicle.vin.clone(), totals)))
    });
    // A vehicle is in one part, so the vehicles of parts can be added.
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
