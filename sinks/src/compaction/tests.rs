//! Compaction against a plain loop over all rows: random rows, split into random files, with random `since`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use argus_dataflow::{
    BatchRow, CellRow, CountRow, FileRow, Recorded, SeenRange, Severity, Subject, Vehicle, VersionId,
};
use arrow::array::{
    Array, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use uuid::Uuid;

use crate::compaction::consolidator::Consolidator;
use crate::compaction::deleted_rows::{DeletedRows, FOUND_MAX};
use crate::compaction::merge::Merge;
use crate::compaction::read::FileRows;
use crate::convert::encode;
use crate::schema::Table;
use crate::snapshot::{DataFile, Snapshot, TableSnapshot};

/// Pseudo-random numbers from a fixed seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut n = self.0;
        n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (n ^ (n >> 31)) % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn some(&mut self, limit: u64) -> Option<u64> {
        Some(self.below(limit + 1)).filter(|n| *n > 0)
    }
}

/// A value of a row, whatever its type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Null,
    Number(i64),
    Text(String),
}

type Line = BTreeMap<String, Cell>;

fn lines(rows: &RecordBatch) -> Vec<Line> {
    let schema = rows.schema();
    let cell = |column: &dyn Array, row: usize| match column.data_type() {
        _ if column.is_null(row) => Cell::Null,
        DataType::Utf8 => Cell::Text(column.as_string::<i32>().value(row).to_owned()),
        DataType::Boolean => Cell::Number(column.as_boolean().value(row).into()),
        DataType::Int32 => Cell::Number(column.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Cell::Number(column.as_primitive::<Int64Type>().value(row)),
        _ => Cell::Number(column.as_primitive::<TimestampMicrosecondType>().value(row)),
    };
    let line = |row| {
        let cells = schema.fields().iter().zip(rows.columns());
        cells.map(|(field, column)| (field.name().clone(), cell(column, row))).collect()
    };
    (0..rows.num_rows()).map(line).collect()
}

fn number(line: &Line, column: &str) -> i64 {
    match line[column] {
        Cell::Number(number) => number,
        ref other => panic!("{column} is {other:?}"),
    }
}

/// A test lake: some files of each table.
struct Lake {
    store: Arc<dyn ObjectStore>,
    tables: BTreeMap<Table, Vec<DataFile>>,
}

impl Lake {
    fn new() -> Lake {
        Lake { store: Arc::new(InMemory::new()), tables: BTreeMap::new() }
    }

    fn snapshot(&self) -> Snapshot {
        let tables = Table::ALL.map(|table| TableSnapshot {
            committed: self.tables.get(&table).cloned().unwrap_or_default().into(),
            ..TableSnapshot::default()
        });
        Snapshot::new(u64::MAX, tables)
    }

    /// Adds a file with these rows in this order, in small row groups and pages.
    async fn add(&mut self, table: Table, rows: &RecordBatch) -> DataFile {
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(40))
            .set_data_page_row_count_limit(16)
            .set_write_batch_size(8);
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, rows.schema(), Some(properties.build())).expect("a writer");
        writer.write(rows).expect("writes");
        writer.close().expect("writes");
        let files = self.tables.entry(table).or_default();
        let path = Path::from(format!("{}/{}.parquet", table.name(), files.len()));
        let keys = rows.column_by_name(table.sort_columns()[0]).expect("a key").as_string::<i32>();
        let keys = keys.iter().flatten().min().zip(keys.iter().flatten().max());
        let keys = keys.map(|(least, greatest)| Arc::from(least)..=Arc::from(greatest));
        let file = DataFile { path: path.clone(), bytes: bytes.len() as u64, keys };
        self.store.put(&path, bytes.into()).await.expect("puts");
        files.push(file.clone());
        file
    }

    /// Adds the rows, each to one of up to `files` files.
    async fn split(&mut self, random: &mut Random, table: Table, rows: &RecordBatch, files: u64) {
        let mut parts: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        (0..rows.num_rows() as u32).for_each(|row| parts.entry(random.below(files)).or_default().push(row));
        for rows_of_part in parts.into_values() {
            let part = take_record_batch(rows, &UInt32Array::from(rows_of_part)).expect("takes");
            self.add(table, &encode::sorted(table, &part).expect("sorts")).await;
        }
    }

    async fn compacted(&self, table: Table, gone: &DeletedRows, since: u64) -> Vec<Line> {
        let files = &self.tables[&table];
        let mut merge = Merge::open(&self.store, table, files).await.expect("opens");
        let mut consolidator = Consolidator::new(table, since, gone);
        let mut found = Vec::new();
        while let Some(rows) = merge.next().await.expect("merges") {
            found.push(consolidator.push(rows).expect("consolidates"));
        }
        found.push(consolidator.finish().expect("consolidates"));
        lines(&concat_batches(&table.schema(), &found).expect("one schema"))
    }
}

fn uuid(kind: u128, number: u64) -> Uuid {
    Uuid::from_u128(kind << 64 | u128::from(number))
}

fn batch_of(number: u64) -> BatchRow {
    BatchRow {
        batch_id: uuid(1, number),
        vehicle_id: format!("veh-{}", number % 5),
        vin: format!("WVWZZZ1JZXW00000{}", number % 5),
        platform: None,
        firmware: Some("7.2".to_owned()),
        labels: Some("{\"a\":\"b\"}".to_owned()),
        created_at: 5,
        live: 0,
        completed: 0,
    }
}

fn batches(random: &mut Random, count: u64) -> RecordBatch {
    let rows = (0..count).map(|_| {
        let completed = random.below(3) as i8 - 1;
        let live = if random.one_in(12) { -1 } else { random.below(2) as i8 };
        let row = BatchRow { live, completed, ..batch_of(random.below(12)) };
        encode::batches(random.below(20), &[(row, 1)]).expect("rows")
    });
    concat_batches(&Table::Batches.schema(), &rows.collect::<Vec<_>>()).expect("one schema")
}

fn files(random: &mut Random, count: u64) -> RecordBatch {
    let rows = (0..count).map(|_| {
        let file = random.below(24);
        let live = random.below(3) as i8 - 1;
        let row = FileRow {
            batch_id: uuid(1, file % 12),
            file_id: uuid(2, file),
            version: VersionId(uuid(3, file * 4 + random.below(4))),
            name: format!("{file}.log"),
            generation: 1,
            live,
            erased: i8::from(live < 0 && random.one_in(8)),
            open_line: false,
            bytes: random.below(100),
            lines: random.below(10),
            long_lines: random.below(2),
            last_line: random.below(10),
            error_lines: random.below(10),
            occurrences: random.below(10),
            uploaded_at: random.below(5) as i64,
            failure: random.some(2).map(|n| format!("reason {n}")),
            binary: random.one_in(2),
            sha256: Some("5f".to_owned()),
            first_ts: random.some(9).map(|n| n as i64),
            last_ts: random.some(9).map(|n| n as i64),
            rules: Some("17".to_owned()),
        };
        encode::files(random.below(20), &[(row, 1)]).expect("rows")
    });
    concat_batches(&Table::Files.schema(), &rows.collect::<Vec<_>>()).expect("one schema")
}

fn error_counts(random: &mut Random, count: u64) -> RecordBatch {
    let rows = (0..count).map(|number| {
        let file = random.below(24);
        let row = CountRow {
            batch_id: uuid(1, file % 12),
            version: VersionId(uuid(3, file * 4 + random.below(2))),
            file: format!("{file}.log"),
            component: random.some(2).map(|n| format!("component-{n}")),
            code: format!("E_{}", random.below(3)),
            rule: format!("rule {number}"),
            severity: [Severity::Warning, Severity::Error, Severity::Critical][random.below(3) as usize],
            active: random.one_in(2),
            first_seen: random.some(9).map(|n| n as i64),
            last_seen: random.some(9).map(|n| n as i64),
            // The first lines are distinct, so the example is unambiguous.
            example_line: number,
            example_text: format!("text {number}"),
        };
        encode::error_counts(random.below(20), &[(row, 1 + random.below(5) as i64)]).expect("rows")
    });
    concat_batches(&Table::ErrorCounts.schema(), &rows.collect::<Vec<_>>()).expect("one schema")
}

fn fleet(random: &mut Random, count: u64) -> RecordBatch {
    let rows = (0..count).map(|_| {
        let vehicle = random.below(6);
        let code = format!("E_{}", random.below(3));
        let subject = match random.below(3) {
            0 => Subject::Lines,
            1 => Subject::Code(code),
            _ => Subject::CodeOf { code, component: random.some(2).map(|n| format!("component-{n}")) },
        };
        let row = CellRow {
            vehicle: Vehicle {
                firmware: random.some(1).map(|_| "7.2".to_owned()),
                platform: None,
                vehicle_id: format!("veh-{vehicle}"),
                vin: format!("WVWZZZ1JZXW00000{vehicle}"),
            },
            subject,
            count: random.below(2),
            inactive: 0,
            batches: 1,
            seen: SeenRange {
                first: None,
                last: random.some(1).map(|n| n as i64),
                first_batch: random.some(1).map(|n| Recorded { at: n as i64, batch_id: uuid(1, 0) }),
            },
        };
        encode::fleet(random.below(20), &[(row, if random.one_in(2) { 1 } else { -1 })]).expect("rows")
    });
    concat_batches(&Table::Fleet.schema(), &rows.collect::<Vec<_>>()).expect("one schema")
}

fn errors(random: &mut Random, count: u64) -> RecordBatch {
    let file: Vec<u64> = (0..count).map(|_| random.below(24)).collect();
    let text = |of: &dyn Fn(u64) -> String| Arc::new(StringArray::from_iter_values(file.iter().map(|file| of(*file))));
    let line: Vec<i64> = file.iter().map(|_| random.below(50) as i64).collect();
    let columns: Vec<arrow::array::ArrayRef> = vec![
        text(&|file| uuid(1, file % 12).to_string()),
        text(&|file| uuid(3, file * 4 + file % 2).to_string()),
        text(&|file| format!("{file}.log")),
        Arc::new(Int64Array::from(line.clone())),
        Arc::new(Int64Array::from(line)),
        Arc::new(TimestampMicrosecondArray::from(vec![None; file.len()]).with_timezone("UTC")),
        Arc::new(BooleanArray::from(vec![None; file.len()])),
        Arc::new(StringArray::from(vec![None::<&str>; file.len()])),
        Arc::new(StringArray::from(vec![Some("ota"); file.len()])),
        text(&|file| format!("E_{}", file % 3)),
        text(&|_| "rule".to_owned()),
        text(&|_| "error".to_owned()),
        Arc::new(BooleanArray::from(vec![true; file.len()])),
        text(&|file| "x".repeat(file as usize)),
    ];
    RecordBatch::try_new(Table::Errors.schema(), columns).expect("the table's columns")
}

/// Deleted data, found by a plain loop.
#[derive(Debug, Default)]
struct PlainGone {
    versions: BTreeSet<Cell>,
    batches: BTreeSet<Cell>,
    vins: BTreeSet<Cell>,
    committed: i64,
}

impl PlainGone {
    fn of(files: &[Line], batches: &[Line], committed: i64, since: i64) -> PlainGone {
        let is_committed = |row: &&Line| number(row, "epoch") <= committed;
        let dead = batches.iter().filter(is_committed).filter(|row| number(row, "live") < 0);
        let dead = dead.map(|row| row["batch_id"].clone()).collect();
        let erased: Vec<&Line> = files.iter().filter(is_committed).filter(|row| number(row, "erased") > 0).collect();
        let erased_files: BTreeSet<&Cell> = erased.iter().map(|row| &row["file_id"]).collect();
        let versions = files.iter().filter(|row| {
            number(row, "live") < 0 && number(row, "epoch") <= since || erased_files.contains(&row["file_id"])
        });
        let mut gone = PlainGone {
            versions: versions.map(|row| row["version"].clone()).collect(),
            batches: dead,
            vins: BTreeSet::new(),
            committed,
        };
        let touched: BTreeSet<&Cell> = erased.iter().map(|row| &row["batch_id"]).chain(&gone.batches).collect();
        let vins = batches.iter().filter(|row| touched.contains(&row["batch_id"])).map(|row| row["vin"].clone());
        gone.vins = vins.collect();
        gone
    }

    fn has(&self, table: Table, row: &Line) -> bool {
        match table {
            Table::Fleet => false,
            Table::Batches => self.batches.contains(&row["batch_id"]),
            _ => self.batches.contains(&row["batch_id"]) || self.versions.contains(&row["version"]),
        }
    }

    /// The rows of a table as compaction leaves them, in any order.
    fn compacted(&self, table: Table, rows: &[Line], since: i64) -> Vec<Line> {
        let (sums, least, greatest): (&[&str], &[&str], &[&str]) = match table {
            Table::Errors => return rows.iter().filter(|row| !self.has(table, row)).cloned().collect(),
            Table::ErrorCounts => (&["count"], &["first_seen"], &["epoch", "last_seen"]),
            Table::Batches => (&["live", "completed"], &[], &["epoch"]),
            Table::Fleet => (&["live"], &[], &["epoch"]),
            Table::Files => (
                &["live", "erased", "bytes", "lines", "long_lines", "last_line", "error_lines", "occurrences"],
                &["first_ts"],
                &["epoch", "uploaded_at", "failure", "binary", "last_ts"],
            ),
        };
        let example = ["rule", "example_line", "example_text"];
        let mut left = Vec::new();
        let mut groups: BTreeMap<Line, Vec<Line>> = BTreeMap::new();
        for row in rows.iter().filter(|row| !self.has(table, row)) {
            let epoch = number(row, "epoch");
            let is_summed = table == Table::Fleet && self.vins.contains(&row["vin"]) && epoch <= self.committed;
            let is_old = epoch <= since || is_summed;
            if !is_old {
                left.push(row.clone());
                continue;
            }
            let mut key = row.clone();
            key.retain(|name, _| {
                let name = &name.as_str();
                ![sums, least, greatest, &example].iter().any(|columns| columns.contains(name))
            });
            // A retraction records the deletion, so it is not summed.
            if matches!(table, Table::Files | Table::Batches) && number(row, "live") < 0 {
                key.insert("epoch".to_owned(), row["epoch"].clone());
            }
            groups.entry(key).or_default().push(row.clone());
        }
        for (key, rows) in groups {
            let mut row = rows.iter().min_by_key(|row| row.get("example_line").cloned()).expect("a row").clone();
            row.extend(key);
            for column in sums {
                row.insert((*column).to_owned(), Cell::Number(rows.iter().map(|row| number(row, column)).sum()));
            }
            for column in least {
                let least = rows.iter().map(|row| &row[*column]).filter(|cell| **cell != Cell::Null).min();
                row.insert((*column).to_owned(), least.cloned().unwrap_or(Cell::Null));
            }
            for column in greatest {
                row.insert((*column).to_owned(), rows.iter().map(|row| row[*column].clone()).max().expect("a row"));
            }
            if table != Table::Fleet || number(&row, "live") != 0 {
                left.push(row);
            }
        }
        left
    }
}

fn sorted(mut lines: Vec<Line>) -> Vec<Line> {
    lines.sort();
    lines
}

fn keys(table: Table, lines: &[Line]) -> Vec<Vec<Cell>> {
    lines.iter().map(|line| table.sort_columns().iter().map(|column| line[*column].clone()).collect()).collect()
}

#[tokio::test]
async fn compacted_tables_equal_a_plain_loop_over_all_rows() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let mut lake = Lake::new();
        let mut rows = BTreeMap::new();
        for table in Table::ALL {
            let made = match table {
                Table::Errors => errors(&mut random, 400),
                Table::ErrorCounts => error_counts(&mut random, 300),
                Table::Batches => batches(&mut random, 30),
                Table::Fleet => fleet(&mut random, 300),
                Table::Files => files(&mut random, 200),
            };
            let parts = 1 + random.below(9);
            lake.split(&mut random, table, &made, parts).await;
            rows.insert(table, lines(&made));
        }
        let since = random.below(25);
        let committed = since + random.below(20);
        let gone = DeletedRows::find(&lake.store, &lake.snapshot(), committed, since, FOUND_MAX).await.expect("reads");
        let plain = PlainGone::of(&rows[&Table::Files], &rows[&Table::Batches], committed as i64, since as i64);
        for table in Table::ALL {
            let found = lake.compacted(table, &gone, since).await;
            assert!(keys(table, &found).is_sorted(), "seed {seed}: {table:?} is out of order");
            let expected = plain.compacted(table, &rows[&table], since as i64);
            assert_eq!(sorted(found), sorted(expected), "seed {seed}: {table:?}");
            for file in &lake.tables[&table] {
                let one =
                    Lake { store: Arc::clone(&lake.store), tables: BTreeMap::from([(table, vec![file.clone()])]) };
                let of_file = one.compacted(table, &DeletedRows::default(), 0).await;
                let expected = match table {
                    Table::Fleet => of_file.iter().any(|row| plain.vins.contains(&row["vin"])),
                    _ => of_file.iter().any(|row| plain.has(table, row)),
                };
                let is_in = gone.is_in(&lake.store, table, file).await.expect("reads");
                // Rows of epoch 0 that sum to zero are consolidated away here, but still in the file.
                assert!(is_in == expected || table == Table::Fleet && is_in, "seed {seed}: {}", file.path);
            }
        }
    }
}

#[tokio::test]
async fn a_run_finds_a_limited_number_and_later_runs_find_the_rest() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let (all_files, all_batches) = (files(&mut random, 200), batches(&mut random, 30));
        let plain = PlainGone::of(&lines(&all_files), &lines(&all_batches), 10, 10);
        let counts = error_counts(&mut random, 300);
        let mut left =
            BTreeMap::from([(Table::ErrorCounts, counts), (Table::Batches, all_batches), (Table::Files, all_files)]);
        let mut runs = 0;
        loop {
            let mut lake = Lake::new();
            for (table, rows) in &left {
                lake.split(&mut random, *table, rows, 3).await;
            }
            let gone = DeletedRows::find(&lake.store, &lake.snapshot(), 10, 10, 1).await.expect("reads");
            for (table, rows) in &mut left {
                *rows = gone.without(*table, rows.clone()).expect("filters");
            }
            runs += 1;
            assert!(runs < 200, "seed {seed}: deleted rows remain after {runs} runs");
            if !gone.is_partial {
                break;
            }
        }
        for (table, rows) in &left {
            assert!(!lines(rows).iter().any(|row| plain.has(*table, row)), "seed {seed}: {table:?}");
        }
        assert!(runs > 1, "seed {seed}");
    }
}

#[tokio::test]
async fn a_file_is_read_in_chunks_of_any_size_across_row_groups_and_pages() {
    let mut lake = Lake::new();
    let rows = errors(&mut Random(1), 333);
    let file = lake.add(Table::Errors, &rows).await;
    for chunk_rows in [1, 7, 16, 40, 1000] {
        let columns = ["batch_id", "text"];
        let open = FileRows::open(Arc::clone(&lake.store), Table::Errors, &file, &columns, chunk_rows);
        let mut read = open.await.expect("opens");
        let mut found = Vec::new();
        while let Some(rows) = read.next().await.expect("reads") {
            assert!(rows.num_rows() <= chunk_rows);
            found.push(rows);
        }
        let found = concat_batches(&found[0].schema(), &found).expect("one schema");
        let project = rows.project(&[0, rows.schema().index_of("text").expect("a column")]).expect("columns");
        assert_eq!(lines(&found), lines(&project), "{chunk_rows}");
    }
}

#[tokio::test]
async fn files_sorted_only_by_a_prefix_stay_sorted_by_it() {
    let mut random = Random(2);
    let mut lake = Lake::new();
    let mut all = Vec::new();
    for _ in 0..5 {
        let rows = encode::sorted(Table::Errors, &errors(&mut random, 200)).expect("sorts");
        // Like a spilled file of a large upload: one file's lines in the order in which blocks were scanned.
        let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
        let file = |row: u32| {
            let text = |column: usize| rows.column(column).as_string::<i32>().value(row as usize).to_owned();
            (text(0), text(2))
        };
        let noise: Vec<u64> = order.iter().map(|_| random.below(1000)).collect();
        order.sort_by_key(|row| (file(*row), noise[*row as usize]));
        let rows = take_record_batch(&rows, &UInt32Array::from(order)).expect("takes");
        all.extend(lines(&rows));
        lake.add(Table::Errors, &rows).await;
    }
    let found = lake.compacted(Table::Errors, &DeletedRows::default(), 0).await;
    let prefixes: Vec<_> = found.iter().map(|row| (row["batch_id"].clone(), row["file"].clone())).collect();
    assert!(prefixes.is_sorted());
    assert_eq!(sorted(found), sorted(all));
}

#[tokio::test]
async fn a_batch_that_exceeds_the_buffer_becomes_several_rows_with_the_same_sum() {
    let text = "x".repeat(1000);
    let row = |number: u64| CountRow {
        active: true,
        batch_id: uuid(1, 1),
        version: VersionId(uuid(3, number)),
        file: "a.log".to_owned(),
        component: None,
        code: "E_FAIL".to_owned(),
        rule: "rule".to_owned(),
        severity: Severity::Error,
        first_seen: None,
        last_seen: None,
        example_line: number,
        example_text: text.clone(),
    };
    let rows: Vec<_> = (0..20_000).map(|number| (row(number / 2), 1)).collect();
    let gone = DeletedRows::default();
    let mut consolidator = Consolidator::new(Table::ErrorCounts, 5, &gone);
    let mut found = Vec::new();
    for part in rows.chunks(500) {
        found.push(consolidator.push(encode::error_counts(1, part).expect("rows")).expect("consolidates"));
        assert!(consolidator.buffered_bytes < 16 << 20);
    }
    found.push(consolidator.finish().expect("consolidates"));
    let found: Vec<Line> = found.iter().flat_map(lines).collect();
    assert_eq!(found.iter().map(|row| number(row, "count")).sum::<i64>(), 20_000);
    assert!((10_000..12_000).contains(&found.len()), "{}", found.len());
}

#[tokio::test]
async fn the_error_for_an_unreadable_file_contains_its_path() {
    let mut lake = Lake::new();
    let rows = encode::sorted(Table::Errors, &errors(&mut Random(3), 100)).expect("sorts");
    lake.add(Table::Errors, &rows).await;
    let damaged = lake.add(Table::Errors, &rows).await;
    let bytes = lake.store.get(&damaged.path).await.expect("gets").bytes().await.expect("reads");
    lake.store.put(&damaged.path, bytes.slice(..bytes.len() / 2).into()).await.expect("puts");
    let opened = Merge::open(&lake.store, Table::Errors, &lake.tables[&Table::Errors]).await;
    assert_eq!(opened.err().and_then(|error| error.path().cloned()), Some(damaged.path));
}
