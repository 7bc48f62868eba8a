//! The tables of the metadata, and their migrations.

use sqlx::{AnyConnection, Connection, Row};

use crate::domain::digest::{self, Digest};
use crate::metadata::MetadataError;
use crate::metadata::dialect::Dialect;

/// The version of the tables, stored in PostgreSQL. A process refuses a newer one.
const VERSION: i64 = 4;

/// Any number that no other use of the database has: serialises migrations.
const MIGRATION_LOCK: i64 = 0x61_72_67_75_73;

const SQLITE: &str = "
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, described TEXT NOT NULL, vehicle_id TEXT NOT NULL, vin TEXT NOT NULL, firmware TEXT,
    status TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    epoch INTEGER NOT NULL, completed_epoch INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batches_by_status ON batches (status, id);
CREATE INDEX IF NOT EXISTS batches_by_vin ON batches (vin, id);
CREATE INDEX IF NOT EXISTS batches_by_vehicle ON batches (vehicle_id, id);
CREATE INDEX IF NOT EXISTS batches_by_firmware ON batches (firmware, id);
CREATE TABLE IF NOT EXISTS files (
    batch_id TEXT NOT NULL, name TEXT NOT NULL, file_id TEXT NOT NULL, generation INTEGER NOT NULL,
    version TEXT NOT NULL, bytes INTEGER NOT NULL, lines INTEGER NOT NULL, digest BLOB NOT NULL,
    open_text BLOB NOT NULL, open_bytes INTEGER NOT NULL, open_version TEXT,
    uploaded_at INTEGER NOT NULL, epoch INTEGER NOT NULL,
    -- Encoding of its object in the raw store; NULL if it has none because all of the file was appended.
    encoding TEXT,
    -- Why the version could not be counted.
    failure TEXT,
    PRIMARY KEY (batch_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_by_digest ON files (digest);
-- Bytes that were appended to a version; NULL if they are in an object of the raw store.
CREATE TABLE IF NOT EXISTS appended (
    batch_id TEXT NOT NULL, version TEXT NOT NULL, start INTEGER NOT NULL, epoch INTEGER NOT NULL, bytes BLOB,
    -- Bytes of the text, if `bytes` is the text compressed with zstd.
    text_bytes INTEGER,
    PRIMARY KEY (version, start)
) STRICT;
CREATE TABLE IF NOT EXISTS journal (
    epoch INTEGER NOT NULL, position INTEGER NOT NULL, change TEXT NOT NULL,
    encoding TEXT, text BLOB, lines_before INTEGER, bytes_before INTEGER,
    PRIMARY KEY (epoch, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS idempotency (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, batch_id TEXT NOT NULL, answer TEXT, at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idempotency_by_time ON idempotency (at);
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY AUTOINCREMENT, batch_id TEXT NOT NULL, event TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS events_by_batch ON events (batch_id, position);
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO clock VALUES (1, 0);
-- Shared by the processes of one deployment: its id, and the key that signs what they store in a shared cache.
CREATE TABLE IF NOT EXISTS deployment (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, secret BLOB NOT NULL) STRICT;
-- When epochs were accepted, with a resolution of one second.
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY, at INTEGER NOT NULL) STRICT;
-- The position of the last event that was published to Kafka.
CREATE TABLE IF NOT EXISTS published (one INTEGER PRIMARY KEY CHECK (one = 1), position INTEGER NOT NULL) STRICT;
-- For each partition that lines are consumed from, the offset of the next record.
CREATE TABLE IF NOT EXISTS offsets (
    topic TEXT NOT NULL, kafka_partition INTEGER NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (topic, kafka_partition)
) STRICT, WITHOUT ROWID;
-- What users know of codes; an empty platform or firmware stands for all.
CREATE TABLE IF NOT EXISTS catalog (
    code TEXT NOT NULL, platform TEXT NOT NULL, firmware TEXT NOT NULL, entry TEXT NOT NULL,
    PRIMARY KEY (code, platform, firmware)
) STRICT, WITHOUT ROWID;
-- Small documents in JSON: a kind, and an id within it.
CREATE TABLE IF NOT EXISTS documents (
    kind TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
-- The last commit of the lake: its epoch, and the version of each table as a JSON list.
CREATE TABLE IF NOT EXISTS lake (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, versions TEXT NOT NULL) STRICT;
";

/// The same tables. Texts are compared by their bytes, as in SQLite. `writer` has the term of the process that may
/// write, and when it last showed that it runs.
const POSTGRES: &str = r#"
CREATE TABLE IF NOT EXISTS batches (
    id TEXT COLLATE "C" PRIMARY KEY, described TEXT NOT NULL, vehicle_id TEXT COLLATE "C" NOT NULL,
    vin TEXT COLLATE "C" NOT NULL, firmware TEXT COLLATE "C", status TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, epoch BIGINT NOT NULL, completed_epoch BIGINT
);
CREATE INDEX IF NOT EXISTS batches_by_status ON batches (status, id);
CREATE INDEX IF NOT EXISTS batches_by_vin ON batches (vin, id);
CREATE INDEX IF NOT EXISTS batches_by_vehicle ON batches (vehicle_id, id);
CREATE INDEX IF NOT EXISTS batches_by_firmware ON batches (firmware, id);
CREATE TABLE IF NOT EXISTS files (
    batch_id TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL, file_id TEXT NOT NULL,
    generation BIGINT NOT NULL, version TEXT COLLATE "C" NOT NULL, bytes BIGINT NOT NULL, lines BIGINT NOT NULL,
    digest BYTEA NOT NULL, open_text BYTEA NOT NULL, open_bytes BIGINT NOT NULL, open_version TEXT,
    uploaded_at BIGINT NOT NULL, epoch BIGINT NOT NULL, encoding TEXT, failure TEXT,
    PRIMARY KEY (batch_id, name)
);
CREATE INDEX IF NOT EXISTS files_by_digest ON files (digest);
CREATE INDEX IF NOT EXISTS files_by_version ON files (version);
CREATE TABLE IF NOT EXISTS appended (
    batch_id TEXT COLLATE "C" NOT NULL, version TEXT COLLATE "C" NOT NULL, start BIGINT NOT NULL,
    epoch BIGINT NOT NULL, bytes BYTEA,
    PRIMARY KEY (version, start)
);
CREATE TABLE IF NOT EXISTS journal (
    epoch BIGINT NOT NULL, position BIGINT NOT NULL, change TEXT NOT NULL,
    encoding TEXT, text BYTEA, lines_before BIGINT, bytes_before BIGINT,
    PRIMARY KEY (epoch, position)
);
CREATE TABLE IF NOT EXISTS idempotency (
    key TEXT COLLATE "C" PRIMARY KEY, request TEXT NOT NULL, batch_id TEXT COLLATE "C" NOT NULL, answer TEXT,
    at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS idempotency_by_time ON idempotency (at);
CREATE INDEX IF NOT EXISTS idempotency_by_batch ON idempotency (batch_id);
CREATE TABLE IF NOT EXISTS events (
    position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, batch_id TEXT COLLATE "C" NOT NULL, event TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_batch ON events (batch_id, position);
CREATE TABLE IF NOT EXISTS clock (one BIGINT PRIMARY KEY CHECK (one = 1), epoch BIGINT NOT NULL);
INSERT INTO clock VALUES (1, 0) ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS deployment (one BIGINT PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, secret BYTEA NOT NULL);
CREATE TABLE IF NOT EXISTS epochs (epoch BIGINT PRIMARY KEY, at BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS offsets (
    topic TEXT COLLATE "C" NOT NULL, kafka_partition BIGINT NOT NULL, next BIGINT NOT NULL,
    PRIMARY KEY (topic, kafka_partition)
);
CREATE TABLE IF NOT EXISTS published (one BIGINT PRIMARY KEY CHECK (one = 1), position BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS lake (one BIGINT PRIMARY KEY CHECK (one = 1), epoch BIGINT NOT NULL, versions TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS writer (
    one BIGINT PRIMARY KEY CHECK (one = 1), term BIGINT NOT NULL, holder TEXT NOT NULL, seen_at TIMESTAMPTZ NOT NULL
);
INSERT INTO writer VALUES (1, 0, '', 'epoch') ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS catalog (
    code TEXT COLLATE "C" NOT NULL, platform TEXT COLLATE "C" NOT NULL, firmware TEXT COLLATE "C" NOT NULL,
    entry TEXT NOT NULL, PRIMARY KEY (code, platform, firmware)
);
CREATE TABLE IF NOT EXISTS documents (
    kind TEXT COLLATE "C" NOT NULL, id TEXT COLLATE "C" NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, id)
);
-- Since version 2.
ALTER TABLE appended ADD COLUMN IF NOT EXISTS text_bytes BIGINT;
CREATE TABLE IF NOT EXISTS version (one BIGINT PRIMARY KEY CHECK (one = 1), version BIGINT NOT NULL);
"#;

/// Creates missing tables, and migrates those of an earlier version.
pub(super) async fn migrate(dialect: Dialect, connection: &mut AnyConnection) -> Result<(), MetadataError> {
    match dialect {
        Dialect::Sqlite => migrate_sqlite(connection).await,
        Dialect::Postgres => migrate_postgres(connection).await,
    }
}

async fn migrate_postgres(connection: &mut AnyConnection) -> Result<(), MetadataError> {
    // Creating what exists already takes locks that a running writer would wait for.
    let version = "SELECT to_regclass('argus.version') IS NOT NULL";
    let exists: bool = sqlx::query(version).fetch_one(&mut *connection).await?.try_get(0)?;
    if exists && stored_version(connection).await? == Some(VERSION) {
        return Ok(());
    }
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *transaction).await?;
    sqlx::raw_sql("CREATE SCHEMA IF NOT EXISTS argus").execute(&mut *transaction).await?;
    sqlx::raw_sql(POSTGRES).execute(&mut *transaction).await?;
    match stored_version(&mut transaction).await? {
        Some(stored) if stored > VERSION => return Err(MetadataError::NewerSchema { stored, known: VERSION }),
        _ => {
            let save = "INSERT INTO version VALUES (1, $1) ON CONFLICT (one) DO UPDATE SET version = excluded.version";
            sqlx::query(save).bind(VERSION).execute(&mut *transaction).await?;
        }
    }
    transaction.commit().await?;
    Ok(())
}

async fn stored_version(connection: &mut AnyConnection) -> Result<Option<i64>, sqlx::Error> {
    let stored = sqlx::query("SELECT version FROM version").fetch_optional(connection).await?;
    stored.map(|row| row.try_get(0)).transpose()
}

async fn migrate_sqlite(connection: &mut AnyConnection) -> Result<(), MetadataError> {
    sqlx::raw_sql(SQLITE).execute(&mut *connection).await?;
    for (table, column, add) in [
        ("files", "encoding", "ALTER TABLE files ADD COLUMN encoding TEXT"),
        ("files", "failure", "ALTER TABLE files ADD COLUMN failure TEXT"),
        ("appended", "text_bytes", "ALTER TABLE appended ADD COLUMN text_bytes INTEGER"),
    ] {
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM pragma_table_info(?) WHERE name = ?")
            .bind(table)
            .bind(column)
            .fetch_one(&mut *connection)
            .await?;
        if found == 0 {
            sqlx::raw_sql(add).execute(&mut *connection).await?;
        }
    }
    // Earlier versions stored the state of SHA-256 in another form, which is shorter.
    let earlier: Vec<(String, Vec<u8>)> = sqlx::query_as("SELECT version, digest FROM files WHERE length(digest) < ?")
        .bind(Digest::default().to_bytes().len() as i64)
        .fetch_all(&mut *connection)
        .await?;
    for (version, digest) in earlier {
        let Some(digest) = digest::from_earlier_version(&digest) else { continue };
        let update = sqlx::query("UPDATE files SET digest = ? WHERE version = ?").bind(digest).bind(version);
        update.execute(&mut *connection).await?;
    }
    // Completion is one durable change; earlier versions stored intermediate statuses.
    sqlx::raw_sql("UPDATE batches SET status = 'completed' WHERE completed_epoch IS NOT NULL AND status <> 'failed'")
        .execute(&mut *connection)
        .await?;
    Ok(())
}
