//! Uncommitted epochs, already readable.

use argus_dataflow::{ClosedEpoch, Row};
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use deltalake_core::kernel::Add;

use crate::convert::encode;
use crate::schema::Table;
use crate::snapshot::DataFile;

/// Rows of consecutive closed epochs, by table.
#[derive(Debug, Clone, Default)]
pub struct CommitGroup {
    /// The last epoch in it.
    pub last_epoch: u64,
    /// Rows in memory, by table in the order of [`Table::ALL`].
    batches: [Vec<RecordBatch>; 5],
    /// Files of `errors` that were written before their epoch, with the `add` actions for their commit.
    /// A replica commits nothing, and has none.
    spilled: Vec<(DataFile, Option<Add>)>,
    bytes: usize,
}

impl CommitGroup {
    /// Adds the rows of `closed`, except to tables that already contain its epoch
    /// (`has`).
    pub fn append(&mut self, closed: &ClosedEpoch, has: impl Fn(Table) -> bool) -> Result<(), ArrowError> {
        let (mut batches, mut files, mut counts, mut cells) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (row, count) in &closed.rows {
            match row {
                Row::Batch(row) => batches.push((row.clone(), *count)),
                Row::File(row) => files.push((row.clone(), *count)),
                Row::Count(row) => counts.push((row.clone(), *count)),
                Row::Cell(row) => cells.push((row.clone(), *count)),
                Row::Abandoned(_) | Row::Fleet(_) | Row::LoadedBatch(_) | Row::RestoredCell(_) => {}
            }
        }
        self.last_epoch = closed.epoch;
        let rows = [
            (Table::Batches, encode::batches(closed.epoch, &batches)?),
            (Table::Fleet, encode::fleet(closed.epoch, &cells)?),
            (Table::Files, encode::files(closed.epoch, &files)?),
            (Table::ErrorCounts, encode::error_counts(closed.epoch, &counts)?),
        ];
        rows.into_iter().filter(|(table, _)| !has(*table)).try_for_each(|(table, rows)| self.push(table, rows))
    }

    /// Adds rows to a table. Adjacent record batches of similar size are merged, so
    /// many small epochs result in few record batches.
    pub fn push(&mut self, table: Table, rows: RecordBatch) -> Result<(), ArrowError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        self.bytes += rows.get_array_memory_size();
        let batches = &mut self.batches[table as usize];
        batches.push(rows);
        while let [.., before, last] = &batches[..] {
            if before.num_rows() > 2 * last.num_rows() {
                break;
            }
            let merged = concat_batches(&table.schema(), [before, last])?;
            batches.truncate(batches.len() - 2);
            batches.push(merged);
        }
        Ok(())
    }

    /// Adds a written, uncommitted file of `errors`.
    pub fn push_spilled(&mut self, file: DataFile, add: Option<Add>) {
        self.spilled.push((file, add));
    }

    /// The rows in memory of a table.
    pub fn batches(&self, table: Table) -> &[RecordBatch] {
        &self.batches[table as usize]
    }

    /// The spilled files of `errors`.
    pub fn spilled(&self) -> impl Iterator<Item = (&DataFile, Option<&Add>)> {
        self.spilled.iter().map(|(file, add)| (file, add.as_ref()))
    }

    /// Approximate bytes of rows in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.spilled.is_empty() && self.batches.iter().all(Vec::is_empty)
    }
}
