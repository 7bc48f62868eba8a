//! The input and output of the dataflow.
//!
//! A [`Change`] is input at an epoch; [`Row`]s with a multiplicity are output
//! when the epoch closes.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::counts::fleet::rows::{CellRow, FleetRow, LoadedBatch};
use crate::counts::rows::{BatchRow, CountRow, FileRow, VersionId};

/// A row of the dataflow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the types say it")]
pub enum Row {
    Batch(BatchRow),
    File(FileRow),
    Count(CountRow),
    /// The version will never be admitted: data stored for it can be deleted.
    Abandoned(VersionId),
    Cell(CellRow),
    Fleet(FleetRow),
    /// A batch to load into the fleet's cells; never output.
    LoadedBatch(Box<LoadedBatch>),
    /// A cell as stored in the lake; never output.
    RestoredCell(CellRow),
}

/// An accepted change, applied at an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A batch is created, completed, reopened or deleted.
    Batch(BatchRow),
    /// The blocks inserted for `version` since it was last admitted now count.
    /// The dataflow adds their error lines and occurrences to the row.
    Admit(FileRow),
    /// The version is no longer live.
    Withdraw(FileRow),
    /// The blocks inserted for this version never count.
    Abandon(VersionId),
    /// Loads an unloaded batch, before the next change to it.
    LoadBatch(Box<LoadedBatch>),
    /// Cells as stored in the lake, before any other change.
    RestoreCells(Vec<CellRow>),
}

impl Change {
    /// The batch that this change is about.
    pub fn batch_id(&self) -> Option<Uuid> {
        match self {
            Change::Batch(batch) => Some(batch.batch_id),
            Change::Admit(file) | Change::Withdraw(file) => Some(file.batch_id),
            Change::LoadBatch(loaded) => Some(loaded.batch.batch_id),
            Change::Abandon(_) | Change::RestoreCells(_) => None,
        }
    }

    /// The vehicle that this change is about, if it names one.
    pub fn vin(&self) -> Option<&str> {
        match self {
            Change::Batch(batch) => Some(&batch.vin),
            Change::LoadBatch(loaded) => Some(&loaded.batch.vin),
            Change::Admit(_) | Change::Withdraw(_) | Change::Abandon(_) | Change::RestoreCells(_) => None,
        }
    }

    /// The version whose blocks this change is about.
    pub fn version(&self) -> Option<VersionId> {
        match self {
            Change::Batch(_) | Change::LoadBatch(_) | Change::RestoreCells(_) => None,
            Change::Admit(file) | Change::Withdraw(file) => Some(file.version),
            Change::Abandon(version) => Some(*version),
        }
    }
}

/// An epoch that is complete: the frontier has passed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedEpoch {
    /// The epoch. Each follows the one before by exactly one.
    pub epoch: u64,
    /// Its rows in order, each with its multiplicity, none of them zero.
    pub rows: Vec<(Row, i64)>,
}

impl ClosedEpoch {
    /// The batches that it changes.
    pub fn batches(&self) -> HashSet<Uuid> {
        let batch = |row: &Row| match row {
            Row::File(file) => Some(file.batch_id),
            Row::Batch(batch) => Some(batch.batch_id),
            _ => None,
        };
        self.rows.iter().filter_map(|(row, _)| batch(row)).collect()
    }
}
