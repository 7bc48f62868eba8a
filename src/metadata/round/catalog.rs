//! Users' entries of the catalogue in a round.

use sqlx::Row;

use super::Round;
use crate::domain::catalog::CatalogEntry;
use crate::metadata::{MetadataError, Refused};

/// The limit of users' entries.
const ENTRIES_MAX: i64 = 100_000;

impl Round<'_> {
    /// Adds entries, or replaces those of the same code, platform and firmware; all, or none. Returns how many are new.
    pub async fn put_catalog(&mut self, entries: &[CatalogEntry]) -> Result<u64, Refused> {
        let count = "SELECT count(*) FROM catalog";
        let before: i64 = self.dialect.query(count).fetch_one(&mut *self.transaction).await?.try_get(0)?;
        sqlx::raw_sql("SAVEPOINT catalog").execute(&mut *self.transaction).await?;
        for entry in entries {
            let text = serde_json::to_string(entry).map_err(|error| MetadataError::Unreadable(error.to_string()))?;
            self.dialect
                .query(
                    "INSERT INTO catalog VALUES (?, ?, ?, ?) \
                     ON CONFLICT (code, platform, firmware) DO UPDATE SET entry = excluded.entry",
                )
                .bind(entry.code.clone())
                .bind(entry.platform.clone().unwrap_or_default())
                .bind(entry.firmware.clone().unwrap_or_default())
                .bind(text)
                .execute(&mut *self.transaction)
                .await?;
        }
        let after: i64 = self.dialect.query(count).fetch_one(&mut *self.transaction).await?.try_get(0)?;
        if after > ENTRIES_MAX {
            sqlx::raw_sql("ROLLBACK TO SAVEPOINT catalog").execute(&mut *self.transaction).await?;
            return Err(Refused::CatalogFull { limit: ENTRIES_MAX });
        }
        Ok((after - before).max(0) as u64)
    }

    /// Deletes an entry.
    pub async fn delete_catalog(&mut self, code: &str, platform: &str, firmware: &str) -> Result<(), Refused> {
        let delete = self.dialect.query("DELETE FROM catalog WHERE code = ? AND platform = ? AND firmware = ?");
        let delete = delete.bind(code.to_owned()).bind(platform.to_owned()).bind(firmware.to_owned());
        match delete.execute(&mut *self.transaction).await?.rows_affected() {
            0 => Err(Refused::NoCatalogEntry { code: code.to_owned() }),
            _ => Ok(()),
        }
    }
}
