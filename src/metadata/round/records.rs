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

impl Round<'_> {
    /// Appends the lines of records, and advances the offsets of their partitions. Returns the batches that cannot
    /// change, each with the reason; nothing is consumed then. Records that were consumed before are refused, so each
    /// counts once, whatever is delivered twice.
    pub async fn consume(&mut self, parts: &[Part], consumed: &[Consumed]) -> Result<Vec<(Uuid, Refused)>, Refused> {
        for Consumed { topic, partition, from, .. } in consumed {
            let stored = self.dialect.query("SELECT next FROM offsets WHERE topic = ? AND kafka_partition = ?");
            let stored = stored.bind(topic).bind(i64::from(*partition)).fetch_optional(&mut *self.transaction).await?;
            let expected: Option<i64> = stored.map(|row| row.try_get(0)).transpose()?;
            if expected != *from {
                return Err(Refused::RecordsDiffer { partition: *partition, expected, actual: *from });
            }
        }
        let mut refused: Vec<(Uuid, Refused)> = Vec::new();
        let mut batches: Vec<Uuid> = parts.iter().map(|part| part.batch_id).collect();
        batches.sort_unstable();
        batches.dedup();
        for batch_id in batches {
            match self.pending(batch_id).await {
                Ok(()) => {}
                Err(Refused::Metadata(error)) => return Err(error.into()),
                Err(reason) => refused.push((batch_id, reason)),
            }
        }
        if !refused.is_empty() {
            return Ok(refused);
        }
        for part in parts {
            self.append(part, None, None).await?;
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
        Ok(Vec::new())
    }
}
