//! What the fleet's groups come to, at the epoch of a snapshot, in memory.
//!
//! The map shares what did not change with those of the epochs before, so a
//! snapshot costs what changed.

use argus_dataflow::{FleetRow, Group, Totals};
use imbl::OrdMap;

/// Codes by group; lines where there is no code.
#[derive(Debug, Clone, Default)]
pub struct FleetView {
    rows: OrdMap<(Group, Option<String>), Totals>,
    changed: u64,
}

impl FleetView {
    /// Takes the changes of an epoch, each with its multiplicity.
    pub fn apply<'r>(&mut self, epoch: u64, changes: impl Iterator<Item = (&'r FleetRow, i64)> + Clone) {
        if changes.clone().next().is_some() {
            self.changed = epoch;
        }
        let key = |row: &FleetRow| (row.group.clone(), row.code.clone());
        // What a row was goes before what it is now.
        for (row, _) in changes.clone().filter(|(_, count)| *count < 0) {
            self.rows.remove(&key(row));
        }
        for (row, _) in changes.filter(|(_, count)| *count > 0) {
            self.rows.insert(key(row), row.totals);
        }
    }

    /// The last epoch that changed anything: until the next, it says the same.
    pub fn changed(&self) -> u64 {
        self.changed
    }

    /// What a group's code comes to; its lines where `code` is none.
    pub fn totals(&self, group: &Group, code: Option<&str>) -> Option<Totals> {
        self.rows.get(&(group.clone(), code.map(str::to_owned))).copied()
    }

    /// All groups' codes and lines from a group on, in order.
    pub fn from(&self, group: Group) -> impl Iterator<Item = (&Group, Option<&str>, Totals)> {
        self.rows.range((group, None)..).map(|((group, code), totals)| (group, code.as_deref(), *totals))
    }
}
