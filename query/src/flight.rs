//! SQL over Arrow Flight SQL, for ADBC and JDBC.
//!
//! A handle is the statement itself ([`prepared`]), so nothing is kept between
//! calls: what a ticket stands for is planned and run when its rows are fetched,
//! at the epoch of that moment.

mod connections;
mod prepared;

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use argus_sinks::Snapshot;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::writer::IpcWriteOptions;
use arrow::ipc::{MessageHeader, root_as_message};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::FlightServiceServer;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandPreparedStatementQuery, CommandStatementQuery, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo,
    TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage,
    SchemaAsIpc, Ticket,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::ask::{Limits, Rows};
use crate::cache::SealKey;
use crate::engine::{CATALOG, Engine};
use crate::flight::connections::{CONNECTIONS_MAX, PING_EVERY, SILENCE_MAX, incoming};
use crate::flight::prepared::{HandleError, Prepared};
use crate::query_error::QueryError;
use crate::statement::{check_plan, check_statement};

/// How long open answers may go on after the signal to stop.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Calls at once on a connection.
const STREAMS_MAX: u32 = 100;

/// Answers connections until `stopped`. A call that has no answer in the time of a query has failed.
pub fn serve(
    listener: TcpListener,
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    limits: Limits,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let threads = engine.background.handle();
    let door = FlightServiceServer::new(Door { engine, snapshots, limits, seal: SealKey::random() });
    let (stop, told) = oneshot::channel::<()>();
    let mut task = threads.spawn(async move {
        let incoming = incoming(listener, CONNECTIONS_MAX);
        // Whoever would tell it to stop and is gone has told it.
        let told = async move { drop(told.await) };
        let served = Server::builder()
            .timeout(limits.time)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(SILENCE_MAX - PING_EVERY))
            .add_service(door)
            .serve_with_incoming_shutdown(incoming, told)
            .await;
        if let Err(error) = served {
            tracing::error!(error = &error as &dyn std::error::Error, "Flight SQL has stopped");
        }
    });
    async move {
        stopped.await;
        drop(stop);
        // Answers that are read slowly, or by nobody, end with the server.
        if tokio::time::timeout(STOP_WAIT, &mut task).await.is_err() {
            task.abort();
        }
    }
}

#[derive(Clone)]
struct Door {
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    limits: Limits,
    /// Seals handles.
    seal: SealKey,
}

type Reply<T> = Result<Response<T>, Status>;
type DataStream = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

/// What clients ask about the server.
static ABOUT: LazyLock<Result<SqlInfoData, Status>> = LazyLock::new(|| {
    let mut about = SqlInfoDataBuilder::new();
    about.append(SqlInfo::FlightSqlServerName, "Argus");
    about.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    about.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    about.append(SqlInfo::FlightSqlServerReadOnly, true);
    about.build().map_err(|error| Status::internal(error.to_string()))
});

impl Door {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// The columns of a statement's answer, and its parameters while they have no values.
    async fn columns(&self, prepared: &Prepared) -> Result<(Schema, Schema), Status> {
        let Prepared { sql, values, .. } = prepared.clone();
        let (engine, snapshot) = (self.engine.clone(), self.snapshot());
        let plan = async move {
            check_statement(&sql)?;
            let session = engine.session(&snapshot, None)?;
            let mut plan = session.state().create_logical_plan(&sql).await.map_err(QueryError::of)?;
            if !values.is_empty() {
                plan = plan.with_param_values(values).map_err(QueryError::of)?;
            }
            check_plan(&plan)?;
            let mut parameters: Vec<_> = plan.get_parameter_types().map_err(QueryError::of)?.into_iter().collect();
            // By number: $10 comes after $9.
            parameters.sort_by_key(|(name, _)| (name.len(), name.clone()));
            // Of one that could be of any type, text is told.
            let parameter =
                |(name, kind): (String, Option<DataType>)| Field::new(name, kind.unwrap_or(DataType::Utf8), true);
            let parameters = Schema::new(parameters.into_iter().map(parameter).collect::<Vec<_>>());
            // The rows must have the columns that are told, so they are read off the plan that makes them; without values
            // for its parameters there is none.
            let columns = if parameters.fields().is_empty() {
                let state = session.state();
                state.create_physical_plan(&plan).await.map_err(QueryError::of)?.schema().as_ref().clone()
            } else {
                plan.schema().as_arrow().clone()
            };
            Ok((columns, parameters))
        };
        // A plan takes a thread like the rows do.
        let _turn = self.engine.turn().await.map_err(refused)?;
        plan.await.map_err(refused)
    }

    async fn rows(&self, handle: &Bytes) -> Reply<DataStream> {
        let Prepared { sql, values, .. } = Prepared::of(handle, self.seal).map_err(no_handle)?;
        let rows = self.engine.ask_with(&self.snapshot(), &sql, values, self.limits).await.map_err(refused)?;
        let (schema, limit) = (Arc::clone(&rows.schema), self.limits.rows);
        let batches = stream::unfold((rows, false), move |(mut rows, ended): (Rows, bool)| async move {
            if ended {
                return None;
            }
            match rows.next().await {
                Some(Ok(batch)) => Some((Ok(batch), (rows, false))),
                Some(Err(error)) => Some((Err(external(error)), (rows, true))),
                // An answer that is cut off must not pass for a whole one.
                None if rows.truncated() => Some((Err(external(QueryError::TooManyRows(limit))), (rows, true))),
                None => None,
            }
        });
        let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(batches).map_err(Status::from);
        Ok(Response::new(encoded.boxed()))
    }
}

fn external(error: QueryError) -> FlightError {
    FlightError::Tonic(Box::new(refused(error)))
}

fn refused(error: QueryError) -> Status {
    let text = error.to_string();
    match error {
        QueryError::NotAQuery => Status::permission_denied(text),
        QueryError::Unsupported(_) => Status::invalid_argument(text),
        QueryError::Invalid(_) | QueryError::TooLong | QueryError::TooManyCalls => Status::invalid_argument(text),
        QueryError::TimedOut(_) => Status::deadline_exceeded(text),
        QueryError::TooLarge | QueryError::TooManyRows(_) | QueryError::Busy => Status::resource_exhausted(text),
        QueryError::Failed(_) | QueryError::BrokeOff => Status::internal(text),
    }
}

/// One set of rows, to be fetched with a ticket.
fn info(ticket: &impl ProstMessageExt, schema: &Schema, asked: Request<FlightDescriptor>) -> Reply<FlightInfo> {
    let ticket = Ticket { ticket: ticket.as_any().encode_to_vec().into() };
    let info = FlightInfo::new()
        .try_with_schema(schema)
        .map_err(|error| Status::internal(error.to_string()))?
        .with_endpoint(FlightEndpoint::new().with_ticket(ticket))
        .with_descriptor(asked.into_inner());
    Ok(Response::new(info))
}

/// Rows about the tables, all at once.
fn told(rows: Result<arrow::array::RecordBatch, FlightError>) -> Reply<DataStream> {
    let schema = rows.as_ref().map_err(|error| Status::internal(error.to_string()))?.schema();
    let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(stream::iter([rows]));
    Ok(Response::new(encoded.map_err(Status::from).boxed()))
}

/// Refuses compressed values: how long they get is what the client says.
fn uncompressed(data: FlightData) -> Result<FlightData, FlightError> {
    let message = root_as_message(&data.data_header).map_err(|error| FlightError::DecodeError(error.to_string()))?;
    let plain = match message.header_type() {
        MessageHeader::Schema => true,
        MessageHeader::RecordBatch => {
            message.header_as_record_batch().is_some_and(|batch| batch.compression().is_none())
        }
        _ => false,
    };
    let refused = || {
        Status::invalid_argument(
            "the values of parameters are sent as they are, neither compressed nor in a dictionary",
        )
    };
    if plain { Ok(data) } else { Err(FlightError::Tonic(Box::new(refused()))) }
}

fn no_handle(error: HandleError) -> Status {
    Status::invalid_argument(error.to_string())
}

#[tonic::async_trait]
impl FlightSqlService for Door {
    type FlightService = Door;

    async fn do_handshake(
        &self,
        _request: Request<Streaming<HandshakeRequest>>,
    ) -> Reply<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>> {
        // Everybody may come in who can reach the address.
        let welcome = HandshakeResponse { protocol_version: 0, payload: Bytes::new() };
        Ok(Response::new(stream::iter([Ok(welcome)]).boxed()))
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        asked: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        let prepared = Prepared::new(&query.query).map_err(no_handle)?;
        let (schema, _) = self.columns(&prepared).await?;
        info(&TicketStatementQuery { statement_handle: prepared.handle(self.seal).map_err(no_handle)? }, &schema, asked)
    }

    async fn do_get_statement(&self, ticket: TicketStatementQuery, _: Request<Ticket>) -> Reply<DataStream> {
        self.rows(&ticket.statement_handle).await
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let prepared = Prepared::new(&query.query).map_err(no_handle)?;
        let (schema, parameters) = self.columns(&prepared).await?;
        let message = |schema: &Schema| -> Result<Bytes, Status> {
            let message: Result<IpcMessage, _> = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into();
            let IpcMessage(bytes) = message.map_err(|error: ArrowError| Status::internal(error.to_string()))?;
            Ok(bytes)
        };
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: prepared.handle(self.seal).map_err(no_handle)?,
            dataset_schema: message(&schema)?,
            parameter_schema: message(&parameters)?,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        _: ActionClosePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<(), Status> {
        Ok(())
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        sent: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let prepared = Prepared::of(&query.prepared_statement_handle, self.seal).map_err(no_handle)?;
        let sent = sent.into_inner().map_err(FlightError::from).and_then(|data| async { uncompressed(data) });
        let rows: Vec<_> = FlightRecordBatchStream::new_from_flight_data(sent).take(2).try_collect().await?;
        let row = match &rows[..] {
            [row] => row,
            rows => return Err(no_handle(HandleError::NotOneRow(rows.iter().map(RecordBatch::num_rows).sum()))),
        };
        let prepared = prepared.with_values(row).map_err(no_handle)?;
        Ok(DoPutPreparedStatementResult {
            prepared_statement_handle: Some(prepared.handle(self.seal).map_err(no_handle)?),
        })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        asked: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        let prepared = Prepared::of(&query.prepared_statement_handle, self.seal).map_err(no_handle)?;
        let (schema, _) = self.columns(&prepared).await?;
        info(&query, &schema, asked)
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        _: Request<Ticket>,
    ) -> Reply<DataStream> {
        self.rows(&query.prepared_statement_handle).await
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        asked: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        info(&query, &query.into_builder().schema(), asked)
    }

    async fn do_get_catalogs(&self, query: CommandGetCatalogs, _: Request<Ticket>) -> Reply<DataStream> {
        let mut rows = query.into_builder();
        rows.append(CATALOG);
        told(rows.build())
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        asked: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        info(&query, &query.clone().into_builder().schema(), asked)
    }

    async fn do_get_schemas(&self, query: CommandGetDbSchemas, _: Request<Ticket>) -> Reply<DataStream> {
        let mut rows = query.into_builder();
        rows.append(CATALOG, "public");
        told(rows.build())
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        asked: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        info(&query, &query.clone().into_builder().schema(), asked)
    }

    async fn do_get_tables(&self, query: CommandGetTables, _: Request<Ticket>) -> Reply<DataStream> {
        let internal = |error: &dyn std::error::Error| Status::internal(error.to_string());
        let session = self.engine.session(&self.snapshot(), None).map_err(refused)?;
        let catalog = session.catalog(CATALOG).and_then(|catalog| catalog.schema("public"));
        let public = catalog.ok_or_else(|| Status::internal("the tables are not there"))?;
        let mut rows = query.into_builder();
        for name in public.table_names() {
            if let Some(table) = public.table(&name).await.map_err(|error| internal(&error))? {
                let appended = rows.append(CATALOG, "public", &name, "TABLE", &table.schema());
                appended.map_err(|error| internal(&error))?;
            }
        }
        told(rows.build())
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        asked: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        info(&query, &query.into_builder().schema(), asked)
    }

    async fn do_get_table_types(&self, query: CommandGetTableTypes, _: Request<Ticket>) -> Reply<DataStream> {
        let mut rows = query.into_builder();
        rows.append("TABLE");
        told(rows.build())
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        asked: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        let about = ABOUT.as_ref().map_err(Clone::clone)?;
        info(&query, &query.clone().into_builder(about).schema(), asked)
    }

    async fn do_get_sql_info(&self, query: CommandGetSqlInfo, _: Request<Ticket>) -> Reply<DataStream> {
        let about = ABOUT.as_ref().map_err(Clone::clone)?;
        told(query.into_builder(about).build())
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}
