//! Records of Kafka in a round: their lines, and the offsets that they end at.

use sqlx::Row;
use uuid::Uuid;

use super::Round;
use crate::domain::batch::Part;
use crate::metadata::Refused;

/// The records of a partition that are consumed in one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumed {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset that the records continue at; `None` if no record of the partition was consumed before.
    pub from: Option<i64>,
    /// The offset of the record after them.
    pub next: i64,
}

/// A part that cannot be appended: nothing of its records was consumed.
#[derive(Debug)]
pub struct RefusedPart {
    /// The batch.
    pub batch_id: Uuid,
    /// The file.
    pub file: String,
    /// Why.
    pub reason: Refused,
}

impl Round<'_> {
    /// Appends the lines of records, and advances the offsets of their partitions; or does nothing, and returns the first
    /// part that is refused. Records that were consumed before are refused, so each counts once, whatever is delivered
    /// twice.
    pub async fn consume(&mut self, parts: &[Part], consumed: &[Consumed]) -> Result<Option<RefusedPart>, Refused> {
        for Consumed { topic, partition, from, next } in consumed {
            let stored = self.dialect.query("SELECT next FROM offsets WHERE topic = ? AND kafka_partition = ?");
            let stored = stored.bind(topic).bind(i64::from(*partition)).fetch_optional(&mut *self.transaction).await?;
            let expected: Option<i64> = stored.map(|row| row.try_get(0)).transpose()?;
            if expected != *from || Some(*next) <= expected {
                return Err(Refused::RecordsDiffer { partition: *partition, expected, actual: *from });
            }
        }
        // A later part may be refused when earlier ones are appended already.
        let before = (self.entries.len(), self.not_inserted.len(), self.events.len());
        sqlx::raw_sql("SAVEPOINT records").execute(&mut *self.transaction).await?;
        for part in parts {
            match self.append(part, None, None).await {
                Ok(_) => {}
                Err(Refused::Metadata(error)) => return Err(error.into()),
                Err(reason) => {
                    sqlx::raw_sql("ROLLBACK TO SAVEPOINT records").execute(&mut *self.transaction).await?;
                    self.entries.truncate(before.0);
                    self.not_inserted.truncate(before.1);
                    self.events.truncate(before.2);
                    return Ok(Some(RefusedPart { batch_id: part.batch_id, file: part.name.clone(), reason }));
                }
            }
        }
        for Consumed { topic, partition, next, .. } in consumed {
            self.dialect
                .query(
                    "INSERT INTO offsets VALUES (?, ?, ?) \
                     ON CONFLICT (topic, kafka_partition) DO UPDATE SET next = excluded.next",
                )
                .bind(topic)
                .bind(i64::from(*partition))
                .bind(*next)
                .execute(&mut *self.transaction)
                .await?;
        }
        Ok(None)
    }
}
