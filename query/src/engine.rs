//! Sessions, limits, and what may be asked.
//!
//! A session is made for each question and sees one snapshot. Only queries
//! are asked: nothing in SQL writes, or reads anything but our tables.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use argus_sinks::{Snapshot, Table};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::CatalogProviderList;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, SchemaProvider, TableProvider,
};
use datafusion::datasource::ViewTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::execution::memory_pool::{FairSpillPool, GreedyMemoryPool, MemoryPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionState;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use tokio::sync::{Semaphore, SemaphorePermit};
use url::Url;

use crate::provider::Differences;
use crate::views::{VIEWS, View};

/// The rows of an answer may take this much memory (32 MiB).
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// The limits of the engine. Users' queries and our own questions (reports,
/// lines with codes) have limits of their own, so that neither starves the other.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Memory for all users' queries together; sorts and groupings beyond it spill to disk.
    pub query_bytes: usize,
    /// Users' queries that run at once.
    pub queries_max: usize,
    /// Threads that one user's query may use.
    pub query_threads: usize,
    /// Memory for all our own questions together.
    pub question_bytes: usize,
    /// Our own questions that run at once.
    pub questions_max: usize,
    /// Memory for the compaction of tables.
    pub upkeep_bytes: usize,
    /// How long either may wait for its turn.
    pub turn_wait: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            query_bytes: 128 << 20,
            queries_max: 8,
            query_threads: 2,
            question_bytes: 64 << 20,
            questions_max: 8,
            upkeep_bytes: 128 << 20,
            turn_wait: Duration::from_secs(10),
        }
    }
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum QueryError {
    #[error("only a single query (SELECT, VALUES, WITH) can be asked")]
    NotAQuery,
    #[error("{}", reason(.0))]
    Invalid(Box<DataFusionError>),
    #[error("the query took longer than {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("the query or its answer needs more memory than it may use; select less or group by less")]
    TooLarge,
    #[error("too many questions at once; try again")]
    Busy,
    #[error("the tables could not be read")]
    Failed(#[source] Box<DataFusionError>),
}

/// What the user can do something about: the first line, without the engine's own chain.
fn reason(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    text.lines().next().unwrap_or_default().to_owned()
}

impl QueryError {
    pub(crate) fn of(error: DataFusionError) -> QueryError {
        match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => QueryError::TooLarge,
            DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) | DataFusionError::ParquetError(_) => {
                QueryError::Failed(Box::new(error))
            }
            _ => QueryError::Invalid(Box::new(error)),
        }
    }
}

/// Rows that answer a question.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Their columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// The epoch that the question saw.
    pub epoch: u64,
    /// Whether there were more rows than the limit.
    pub truncated: bool,
}

/// Answers questions over snapshots. Clones share the limits.
#[derive(Clone)]
pub struct Engine {
    queries: Asker,
    questions: Asker,
    upkeep: Asker,
    store: ObjectStoreUrl,
    turn_wait: Duration,
}

/// One kind of asker: its session settings, its memory, and its turns.
#[derive(Clone)]
struct Asker {
    state: SessionState,
    turns: Arc<Semaphore>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine over tables whose files are in `store`, the store of `root`'s scheme and host.
    pub fn new(store: Arc<dyn ObjectStore>, root: &Url, config: &EngineConfig) -> Result<Engine, DataFusionError> {
        let mut base = root.clone();
        base.set_path("");
        let store_url = ObjectStoreUrl::parse(base.as_str())?;
        let asker = |pool: Arc<dyn MemoryPool>, turns, threads| -> Result<Asker, DataFusionError> {
            let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build()?;
            runtime.register_object_store(store_url.as_ref(), Arc::clone(&store));
            Ok(Asker { state: session_state(runtime, threads), turns: Arc::new(Semaphore::new(turns)) })
        };
        let queries =
            asker(Arc::new(FairSpillPool::new(config.query_bytes)), config.queries_max, config.query_threads)?;
        // Our own questions are small and alike: first come, first served.
        let questions = asker(Arc::new(GreedyMemoryPool::new(config.question_bytes)), config.questions_max, 1)?;
        let upkeep = asker(Arc::new(FairSpillPool::new(config.upkeep_bytes)), 1, 1)?;
        Ok(Engine { queries, questions, upkeep, store: store_url, turn_wait: config.turn_wait })
    }

    /// Answers a user's query with at most `row_limit` rows, within `timeout`.
    pub async fn sql(
        &self,
        snapshot: &Arc<Snapshot>,
        sql: &str,
        row_limit: usize,
        timeout: Duration,
    ) -> Result<Answer, QueryError> {
        let _turn = self.turn(&self.queries).await?;
        let work = async {
            let mut stream = self.stream(snapshot, sql).await?;
            let schema = stream.schema();
            let mut batches = Vec::new();
            let (mut rows, mut bytes) = (0, 0);
            while let Some(batch) = stream.next().await {
                let batch = batch.map_err(QueryError::of)?;
                let room = row_limit - rows;
                if batch.num_rows() > room {
                    batches.push(batch.slice(0, room));
                    return Ok(Answer { schema, batches, epoch: snapshot.epoch, truncated: true });
                }
                rows += batch.num_rows();
                bytes += batch.get_array_memory_size();
                if bytes > ANSWER_BYTES_MAX {
                    return Err(QueryError::TooLarge);
                }
                batches.push(batch);
            }
            Ok(Answer { schema, batches, epoch: snapshot.epoch, truncated: false })
        };
        tokio::time::timeout(timeout, work).await.map_err(|_| QueryError::TimedOut(timeout))?
    }

    /// Answers a user's query as it is computed, without limits of its own.
    pub async fn stream(&self, snapshot: &Arc<Snapshot>, sql: &str) -> Result<SendableRecordBatchStream, QueryError> {
        self.stream_for(&self.queries, snapshot, sql).await
    }

    /// Answers one of our own questions in full.
    pub(crate) async fn collect(&self, snapshot: &Arc<Snapshot>, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
        let _turn = self.turn(&self.questions).await?;
        let stream = self.stream_for(&self.questions, snapshot, sql).await?;
        stream.try_collect().await.map_err(QueryError::of)
    }

    /// Rows of a query of ours for the lake's upkeep, which sees some tables more in the schema `upkeep`.
    pub(crate) async fn stream_with(
        &self,
        snapshot: &Arc<Snapshot>,
        sql: &str,
        more: Arc<dyn SchemaProvider>,
    ) -> Result<SendableRecordBatchStream, QueryError> {
        let lake = Arc::new(LakeSchema { snapshot: Arc::clone(snapshot), store: self.store.clone() });
        let context = context(&self.upkeep, &[("lake", lake), ("upkeep", more)]);
        let frame = context.sql(sql).await.map_err(QueryError::of)?;
        frame.execute_stream().await.map_err(QueryError::of)
    }

    async fn turn<'a>(&self, asker: &'a Asker) -> Result<SemaphorePermit<'a>, QueryError> {
        match tokio::time::timeout(self.turn_wait, asker.turns.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(QueryError::Busy),
        }
    }

    async fn stream_for(
        &self,
        asker: &Asker,
        snapshot: &Arc<Snapshot>,
        sql: &str,
    ) -> Result<SendableRecordBatchStream, QueryError> {
        check_is_query(sql)?;
        let context = self.session(asker, snapshot);
        let plan = context.state().create_logical_plan(sql).await.map_err(QueryError::of)?;
        let nothing_else = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        nothing_else.verify_plan(&plan).map_err(|_| QueryError::NotAQuery)?;
        let frame = context.execute_logical_plan(plan).await.map_err(QueryError::of)?;
        frame.execute_stream().await.map_err(QueryError::of)
    }

    fn session(&self, asker: &Asker, snapshot: &Arc<Snapshot>) -> SessionContext {
        let lake = Arc::new(LakeSchema { snapshot: Arc::clone(snapshot), store: self.store.clone() });
        let only_lake = context(asker, &[("lake", lake.clone())]);
        let public = Arc::new(PublicSchema { epoch: snapshot.epoch, lake: only_lake });
        context(asker, &[("lake", lake), ("public", public)])
    }
}

fn session_state(runtime: RuntimeEnv, threads: usize) -> SessionState {
    let mut session = SessionConfig::new()
        .with_target_partitions(threads.max(1))
        .with_information_schema(true)
        .with_default_catalog_and_schema("argus", "public")
        .with_create_default_catalog_and_schema(false);
    session.options_mut().execution.parquet.pushdown_filters = true;
    SessionStateBuilder::new().with_config(session).with_runtime_env(Arc::new(runtime)).with_default_features().build()
}

/// A session that sees these schemas and no others.
fn context(asker: &Asker, schemas: &[(&str, Arc<dyn SchemaProvider>)]) -> SessionContext {
    let catalog = MemoryCatalogProvider::new();
    for (name, schema) in schemas {
        // A new catalog has no schema of that name.
        let _ = catalog.register_schema(name, Arc::clone(schema));
    }
    let catalogs = MemoryCatalogProviderList::new();
    catalogs.register_catalog("argus".to_owned(), Arc::new(catalog));
    let state =
        SessionStateBuilder::new_from_existing(asker.state.clone()).with_catalog_list(Arc::new(catalogs)).build();
    SessionContext::new_with_state(state)
}

/// Refuses what is not exactly one query, before anything is planned.
fn check_is_query(sql: &str) -> Result<(), QueryError> {
    let statements = DFParser::parse_sql(sql).map_err(QueryError::of)?;
    let mut statements = statements.into_iter();
    match (statements.next(), statements.next()) {
        (Some(Statement::Statement(statement)), None) if matches!(*statement, ast::Statement::Query(_)) => Ok(()),
        _ => Err(QueryError::NotAQuery),
    }
}

/// The tables of differences.
#[derive(Debug)]
struct LakeSchema {
    snapshot: Arc<Snapshot>,
    store: ObjectStoreUrl,
}

#[async_trait]
impl SchemaProvider for LakeSchema {
    fn table_names(&self) -> Vec<String> {
        Table::ALL.map(|table| table.name().to_owned()).to_vec()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let table = Table::ALL.into_iter().find(|table| table.name() == name);
        Ok(table.map(|table| -> Arc<dyn TableProvider> {
            let rows = Arc::clone(self.snapshot.table(table));
            Arc::new(Differences::new(table, rows, self.store.clone()))
        }))
    }

    fn table_exist(&self, name: &str) -> bool {
        Table::ALL.iter().any(|table| table.name() == name)
    }
}

/// The tables that users see, planned when they are asked for.
struct PublicSchema {
    epoch: u64,
    lake: SessionContext,
}

impl fmt::Debug for PublicSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicSchema").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for PublicSchema {
    fn table_names(&self) -> Vec<String> {
        VIEWS.map(|view| view.name.to_owned()).to_vec()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let Some(view) = View::named(name) else { return Ok(None) };
        let sql = view.sql(self.epoch);
        let plan = self.lake.state().create_logical_plan(&sql).await?;
        Ok(Some(Arc::new(ViewTable::new(plan, Some(sql)))))
    }

    fn table_exist(&self, name: &str) -> bool {
        View::named(name).is_some()
    }
}
