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
    /// Distinct VINs with lines.
    vehicles: u64,
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
            if self.is_only_row_of_vehicle(row) {
                self.vehicles = self.vehicles.saturating_sub(1);
            }
        }
        for (row, _) in changes.filter(|(_, count)| *count > 0) {
            if self.is_only_row_of_vehicle(row) {
                self.vehicles += 1;
            }
            self.rows.insert(key(row), row.totals);
        }
    }

    /// Whether a row, which is not in the view, would be the only one that counts the lines of its vehicle. Vehicles with
    /// one VIN and different names are one.
    fn is_only_row_of_vehicle(&self, row: &FleetRow) -> bool {
        let FleetGroup::Vehicle { vin, .. } = &row.group else { return false };
        let first = FleetGroup::Vehicle { vin: vin.clone(), vehicle_id: String::new() };
        let is_of_vehicle =
            |group: &FleetGroup| matches!(group, FleetGroup::Vehicle { vin: other, .. } if other == vin);
        row.code.is_none()
            && !self.from(first).take_while(|(group, ..)| is_of_vehicle(group)).any(|(_, code, _)| code.is_none())
    }

    /// The number of vehicles with lines.
    pub fn vehicles(&self) -> u64 {
        self.vehicles
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

#[cfg(test)]
mod tests {
    use argus_dataflow::SeenRange;

    use super::*;

    fn row(vin: &str, vehicle_id: &str, code: Option<&str>, count: u64) -> FleetRow {
        let seen = SeenRange { first: None, last: None, first_batch: None };
        FleetRow {
            group: FleetGroup::Vehicle { vin: vin.to_owned(), vehicle_id: vehicle_id.to_owned() },
            code: code.map(str::to_owned),
            totals: Totals { count, inactive: 0, batches: 1, vehicles: 1, active_vehicles: 1, seen },
        }
    }

    #[test]
    fn vehicles_are_counted_by_their_vin() {
        let mut view = FleetView::default();
        let mut apply = |changes: &[(FleetRow, i64)]| {
            view.apply(1, changes.iter().map(|(row, count)| (row, *count)));
            view.vehicles()
        };
        let first = row("A", "one", None, 5);
        assert_eq!(apply(&[(first.clone(), 1), (row("A", "one", Some("E1"), 2), 1)]), 1);
        let renamed = row("A", "two", None, 1);
        assert_eq!(apply(&[(renamed.clone(), 1), (row("B", "one", None, 1), 1)]), 2);
        let grown = row("A", "one", None, 6);
        assert_eq!(apply(&[(grown.clone(), 1), (first, -1)]), 2);
        assert_eq!(apply(&[(grown, -1)]), 2, "it has another name");
        assert_eq!(apply(&[(renamed, -1)]), 1);
    }
}
