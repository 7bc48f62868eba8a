//! SQL over Arrow Flight SQL, for ADBC and JDBC.
//!
//! A handle contains the statement itself ([`prepared`]), so the server stores nothing
//! between calls. The statement of a ticket is planned and run when its rows are
//! fetched, at the epoch of that moment.

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

use crate::cache::SigningKey;
use crate::engine::Engine;
use crate::error::QueryError;
use crate::execute::{Limits, Rows};
use crate::servers::authenticator::{Authenticator, RunBy, RunStatement};
use crate::servers::flight_sql::connections::{CONNECTIONS_MAX, PING_EVERY, SILENCE_MAX, incoming};
use crate::servers::flight_sql::prepared::{HandleError, Prepared};
use crate::sql::statement::{check_plan, check_statement};
use crate::tables::CATALOG;

/// How long open responses may continue after the stop signal.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Concurrent calls on one connection.
const STREAMS_MAX: u32 = 100;

/// Serves connections until `stopped`. A call without an answer within the time limit of a query fails.
pub fn serve(
    listener: TcpListener,
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    limits: Limits,
    authenticator: Arc<dyn Authenticator>,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let threads = engine.background.handle();
    let signing = SigningKey::random();
    let service = SqlService { engine, snapshots, limits, signing, authenticator: Arc::clone(&authenticator) };
    // With tokens, each call needs one in its header `authorization`.
    let check = move |request: Request<()>| match authenticator.is_open() || has_token(&request, &*authenticator) {
        true => Ok(request),
        false => {
            Err(Status::unauthenticated("this server needs a token with the scope query: authorization: Bearer TOKEN"))
        }
    };
    let service = FlightServiceServer::with_interceptor(service, check);
    let (stop, stopping) = oneshot::channel::<()>();
    let mut task = threads.spawn(async move {
        let incoming = incoming(listener, CONNECTIONS_MAX);
        // A dropped sender also means stop.
        let stopping = async move { drop(stopping.await) };
        let served = Server::builder()
            .timeout(limits.time)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(SILENCE_MAX - PING_EVERY))
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stopping)
            .await;
        if let Err(error) = served {
            tracing::error!(error = &error as &dyn std::error::Error, "the Flight SQL server failed");
        }
    });
    async move {
        stopped.await;
        drop(stop);
        // Responses that are read slowly, or not at all, end with the server.
        if tokio::time::timeout(STOP_WAIT, &mut task).await.is_err() {
            task.abort();
        }
    }
}

fn has_token(request: &Request<()>, authenticator: &dyn Authenticator) -> bool {
    token_of(request).is_some_and(|token| authenticator.may_query(token))
}

fn token_of<T>(request: &Request<T>) -> Option<&str> {
    let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.split_once(' '));
    token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim())
}

#[derive(Clone)]
struct SqlService {
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    limits: Limits,
    /// Signs handles.
    signing: SigningKey,
    authenticator: Arc<dyn Authenticator>,
}

type Reply<T> = Result<Response<T>, Status>;
type DataStream = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

/// The server's `SqlInfo`.
static SQL_INFO: LazyLock<Result<SqlInfoData, Status>> = LazyLock::new(|| {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "Argus");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerReadOnly, true);
    info.build().map_err(|error| Status::internal(error.to_string()))
});

impl SqlService {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// The columns of a statement's result, and the parameters that have no values yet.
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
            // By number: $10 after $9.
            parameters.sort_by_key(|(name, _)| (name.len(), name.clone()));
            // A parameter that could be of any type is reported as text.
            let parameter =
                |(name, kind): (String, Option<DataType>)| Field::new(name, kind.unwrap_or(DataType::Utf8), true);
            let parameters = Schema::new(parameters.into_iter().map(parameter).collect::<Vec<_>>());
            // The rows must have the reported columns, so these come from the physical plan. While parameters have no
            // values, there is none.
            let columns = if parameters.fields().is_empty() {
                let state = session.state();
                state.create_physical_plan(&plan).await.map_err(QueryError::of)?.schema().as_ref().clone()
            } else {
                plan.schema().as_arrow().clone()
            };
            Ok((columns, parameters))
        };
        // Planning occupies a thread, as running does.
        let _permit = self.engine.permit().await.map_err(refused)?;
        plan.await.map_err(refused)
    }

    async fn rows(&self, handle: &Bytes, request: &Request<Ticket>) -> Reply<DataStream> {
        let Prepared { sql, values, .. } = Prepared::of(handle, self.signing).map_err(handle_status)?;
        let by = token_of(request).map_or(RunBy::Anybody, RunBy::Token);
        let from = request.remote_addr().map(|address| address.ip());
        self.authenticator.note(&RunStatement { protocol: "flight", by, from, sql: &sql });
        let rows = self.engine.ask_with(&self.snapshot(), &sql, values, self.limits).await.map_err(refused)?;
        let (schema, limit) = (Arc::clone(&rows.schema), self.limits.rows);
        let batches = stream::unfold((rows, false), move |(mut rows, ended): (Rows, bool)| async move {
            if ended {
                return None;
            }
            match rows.next().await {
                Some(Ok(batch)) => Some((Ok(batch), (rows, false))),
                Some(Err(error)) => Some((Err(external(error)), (rows, true))),
                // A truncated answer must not pass for a complete one.
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
        QueryError::Failed(_) | QueryError::Aborted => Status::internal(text),
    }
}

/// One endpoint with one ticket.
fn info(ticket: &impl ProstMessageExt, schema: &Schema, request: Request<FlightDescriptor>) -> Reply<FlightInfo> {
    let ticket = Ticket { ticket: ticket.as_any().encode_to_vec().into() };
    let info = FlightInfo::new()
        .try_with_schema(schema)
        .map_err(|error| Status::internal(error.to_string()))?
        .with_endpoint(FlightEndpoint::new().with_ticket(ticket))
        .with_descriptor(request.into_inner());
    Ok(Response::new(info))
}

/// Metadata rows, in one batch.
fn metadata_rows(rows: Result<arrow::array::RecordBatch, FlightError>) -> Reply<DataStream> {
    let schema = rows.as_ref().map_err(|error| Status::internal(error.to_string()))?.schema();
    let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(stream::iter([rows]));
    Ok(Response::new(encoded.map_err(Status::from).boxed()))
}

/// Rejects compressed values, because the client chooses how large they decompress.
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
            "parameter values must not be compressed or dictionary-encoded; send them as plain arrays",
        )
    };
    if plain { Ok(data) } else { Err(FlightError::Tonic(Box::new(refused()))) }
}

fn handle_status(error: HandleError) -> Status {
    Status::invalid_argument(error.to_string())
}

#[tonic::async_trait]
impl FlightSqlService for SqlService {
    type FlightService = SqlService;

    async fn do_handshake(
        &self,
        _request: Request<Streaming<HandshakeRequest>>,
    ) -> Reply<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>> {
        // No authentication.
        let reply = HandshakeResponse { protocol_version: 0, payload: Bytes::new() };
        Ok(Response::new(stream::iter([Ok(reply)]).boxed()))
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        let prepared = Prepared::new(&query.query).map_err(handle_status)?;
        let (schema, _) = self.columns(&prepared).await?;
        info(
            &TicketStatementQuery { statement_handle: prepared.handle(self.signing).map_err(handle_status)? },
            &schema,
            request,
        )
    }

    async fn do_get_statement(&self, ticket: TicketStatementQuery, request: Request<Ticket>) -> Reply<DataStream> {
        self.rows(&ticket.statement_handle, &request).await
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let prepared = Prepared::new(&query.query).map_err(handle_status)?;
        let (schema, parameters) = self.columns(&prepared).await?;
        let message = |schema: &Schema| -> Result<Bytes, Status> {
            let message: Result<IpcMessage, _> = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into();
            let IpcMessage(bytes) = message.map_err(|error: ArrowError| Status::internal(error.to_string()))?;
            Ok(bytes)
        };
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: prepared.handle(self.signing).map_err(handle_status)?,
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
        let prepared = Prepared::of(&query.prepared_statement_handle, self.signing).map_err(handle_status)?;
        let sent = sent.into_inner().map_err(FlightError::from).and_then(|data| async { uncompressed(data) });
        let rows: Vec<_> = FlightRecordBatchStream::new_from_flight_data(sent).take(2).try_collect().await?;
        let row = match &rows[..] {
            [row] => row,
            rows => return Err(handle_status(HandleError::NotOneRow(rows.iter().map(RecordBatch::num_rows).sum()))),
        };
        let prepared = prepared.with_values(row).map_err(handle_status)?;
        Ok(DoPutPreparedStatementResult {
            prepared_statement_handle: Some(prepared.handle(self.signing).map_err(handle_status)?),
        })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        let prepared = Prepared::of(&query.prepared_statement_handle, self.signing).map_err(handle_status)?;
        let (schema, _) = self.columns(&prepared).await?;
        info(&query, &schema, request)
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Reply<DataStream> {
        self.rows(&query.prepared_statement_handle, &request).await
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        info(&query, &query.into_builder().schema(), request)
    }

    async fn do_get_catalogs(&self, query: CommandGetCatalogs, _: Request<Ticket>) -> Reply<DataStream> {
        let mut rows = query.into_builder();
        rows.append(CATALOG);
        metadata_rows(rows.build())
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        info(&query, &query.clone().into_builder().schema(), request)
    }

    async fn do_get_schemas(&self, query: CommandGetDbSchemas, _: Request<Ticket>) -> Reply<DataStream> {
        let mut rows = query.into_builder();
        rows.append(CATALOG, "public");
        metadata_rows(rows.build())
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        info(&query, &query.clone().into_builder().schema(), request)
    }

    async fn do_get_tables(&self, query: CommandGetTables, _: Request<Ticket>) -> Reply<DataStream> {
        let internal = |error: &dyn std::error::Error| Status::internal(error.to_string());
        let session = self.engine.session(&self.snapshot(), None).map_err(refused)?;
        let catalog = session.catalog(CATALOG).and_then(|catalog| catalog.schema("public"));
        let public = catalog.ok_or_else(|| Status::internal("the schema public is missing"))?;
        let mut rows = query.into_builder();
        for name in public.table_names() {
            if let Some(table) = public.table(&name).await.map_err(|error| internal(&error))? {
                let appended = rows.append(CATALOG, "public", &name, "TABLE", &table.schema());
                appended.map_err(|error| internal(&error))?;
            }
        }
        metadata_rows(rows.build())
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        info(&query, &query.into_builder().schema(), request)
    }

    async fn do_get_table_types(&self, query: CommandGetTableTypes, _: Request<Ticket>) -> Reply<DataStream> {
        let mut rows = query.into_builder();
        rows.append("TABLE");
        metadata_rows(rows.build())
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Reply<FlightInfo> {
        let sql_info = SQL_INFO.as_ref().map_err(Clone::clone)?;
        info(&query, &query.clone().into_builder(sql_info).schema(), request)
    }

    async fn do_get_sql_info(&self, query: CommandGetSqlInfo, _: Request<Ticket>) -> Reply<DataStream> {
        let sql_info = SQL_INFO.as_ref().map_err(Clone::clone)?;
        metadata_rows(query.into_builder(sql_info).build())
    }

    async fn register_sql_info(&self, _id: i32, _result: &SqlInfo) {}
}
