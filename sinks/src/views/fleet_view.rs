//! The totals of the fleet's groups at the epoch of a snapshot, in memory.
//!
//! A persistent map shares unchanged entries with earlier epochs, so the cost of a
//! snapshot is proportional to the changes.

use argus_dataflow::{FleetGroup, FleetRow, Totals};
use imbl::OrdMap;

/// Totals by group and code; the entry without a code contains the lines.
#[derive(Debug, Clone, Default)]
pub struct FleetView {
    rows: OrdMap<(FleetGroup, Option<String>), Totals>,
    changed: u64,
}

impl FleetView {
    /// Applies the changes of an epoch, each with its multiplicity.
    pub fn apply<'r>(&mut self, epoch: u64, changes: impl Iterator<Item = (&'r FleetRow, i64)> + Clone) {
        if changes.clone().next().is_some() {
            self.changed = epoch;
        }
        let key = |row: &FleetRow| (row.group.clone(), row.code.clone());
        // Retractions first, then new values.
        for (row, _) in changes.clone().filter(|(_, count)| *count < 0) {
            self.rows.remove(&key(row));
        }
        for (row, _) in changes.filter(|(_, count)| *count > 0) {
            self.rows.insert(key(row), row.totals);
        }
    }

    /// The epoch of the last change.
    pub fn changed(&self) -> u64 {
        self.changed
    }

    /// The totals of a code in a group; of its lines if `code` is `None`.
    pub fn totals(&self, group: &FleetGroup, code: Option<&str>) -> Option<Totals> {
        self.rows.get(&(group.clone(), code.map(str::to_owned))).copied()
    }

    /// All entries from `group` on, in order.
    pub fn from(&self, group: FleetGroup) -> impl Iterator<Item = (&FleetGroup, Option<&str>, Totals)> {
        self.rows.range((group, None)..).map(|((group, code), totals)| (group, code.as_deref(), *totals))
    }
}
