//! `argus token`: creates, lists and revokes API tokens, on a server or in a data directory that no server has open.

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::{TimeDelta, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use url::Url;
use uuid::Uuid;

use crate::access::document;
use crate::access::token::{NewToken, Scope, StoredToken};
use crate::cli::ask::{ANSWER_TIME, answer};
use crate::cli::{StorageArgs, client, render, terminal};
use crate::data_dir::{self, metadata_path};
use crate::metadata::{Document, DocumentKind, Location, Metadata, MetadataWriter};

/// The columns of the list.
const COLUMNS: [&str; 8] = ["id", "name", "scopes", "vin", "created_at", "expires_at", "revoked_at", "last_used_at"];

/// Flags of `argus token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// The subcommands of `argus token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a token, and print it; it is shown only once. From the first token on, a server needs one for each request.
    Create(CreateArgs),
    /// List the tokens, without their texts.
    List(PlaceArgs),
    /// Revoke a token at once.
    Revoke(RevokeArgs),
}

/// Flags of `argus token create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// What it may do: upload, read, query or admin; may be repeated.
    #[arg(long, required = true, value_name = "SCOPE", value_delimiter = ',')]
    pub scope: Vec<Scope>,
    /// What it is for.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub name: String,
    /// When it expires, from now, for example 30d.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub expires: Option<Duration>,
    /// Only for the batches of this vehicle; with the scope upload.
    #[arg(long, value_name = "VIN")]
    pub vin: Option<String>,
    /// Where the tokens are.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Flags of `argus token revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The id of the token.
    #[arg(value_name = "ID")]
    pub id: Uuid,
    /// Where the tokens are.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Where the tokens are.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The running server; the variable ARGUS_TOKEN must have a token with the scope admin, if it has tokens.
    #[arg(long, env = "ARGUS_SERVER", value_name = "URL", conflicts_with = "data")]
    pub server: Option<Url>,
    /// Without a server: the data directory and the metadata.
    #[command(flatten)]
    pub storage: StorageArgs,
}

/// Runs `argus token`.
pub fn run(args: &TokenArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    match &args.command {
        TokenCommand::Create(args) => {
            let expires_at = match args.expires {
                Some(after) => Some(Utc::now() + TimeDelta::from_std(after).context("--expires is too long")?),
                None => None,
            };
            let CreateArgs { scope, name, vin, place, .. } = args;
            let described = NewToken { name: name.clone(), scopes: scope.clone(), expires_at, vin: vin.clone() };
            described.check().map_err(anyhow::Error::msg)?;
            let (id, secret) = create(&runtime, place, described)?;
            writeln!(stdout(), "{secret}")?;
            writeln!(stderr(), "This is shown once. Its id is {id}.")?;
        }
        TokenCommand::List(place) => {
            let tokens = list(&runtime, place)?;
            let mut out = terminal::stdout(false);
            render::values(&mut out, &COLUMNS, &tokens)?;
            out.flush()?;
        }
        TokenCommand::Revoke(args) => revoke(&runtime, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn create(runtime: &Runtime, place: &PlaceArgs, described: NewToken) -> Result<(String, String)> {
    let Some(server) = &place.server else {
        let mut stored = Stored::open(runtime, &place.storage)?;
        if stored.tokens.is_empty() && !described.scopes.contains(&Scope::Admin) {
            bail!("the first token must have the scope admin: from then on, nothing is possible without a token");
        }
        let (token, secret) = StoredToken::new(described, Utc::now());
        stored.put(runtime, document(&token)?)?;
        return Ok((token.token().id.to_string(), secret));
    };
    let body = runtime.block_on(async {
        let client = client::builder()?.timeout(ANSWER_TIME).build()?;
        answer(server, client.post(server.join("/api/v1/tokens")?).json(&described)).await
    })?;
    let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
    Ok((text("id"), text("secret")))
}

/// Fails where there are no tokens because there is no data.
fn check_exists(storage: &StorageArgs) -> Result<()> {
    let database = metadata_path(&storage.data);
    if storage.location()?.is_none() && !database.exists() {
        bail!(
            "there is no data in {} (no {}); name the data directory with --data, or the server with --server",
            storage.data.display(),
            database.file_name().unwrap_or_default().to_string_lossy()
        );
    }
    Ok(())
}

fn list(runtime: &Runtime, place: &PlaceArgs) -> Result<Vec<Value>> {
    if place.server.is_none() {
        check_exists(&place.storage)?;
    }
    let mut tokens = match &place.server {
        None => Stored::open(runtime, &place.storage)?.tokens.iter().map(|stored| json!(stored.token())).collect(),
        Some(server) => runtime.block_on(async {
            let client = client::builder()?.timeout(ANSWER_TIME).build()?;
            let body = answer(server, client.get(server.join("/api/v1/tokens")?)).await?;
            Ok::<_, anyhow::Error>(body["tokens"].as_array().cloned().unwrap_or_default())
        })?,
    };
    for token in &mut tokens {
        let scopes = token["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
        token["scopes"] = scopes.collect::<Vec<_>>().join(",").into();
    }
    Ok(tokens)
}

fn revoke(runtime: &Runtime, args: &RevokeArgs) -> Result<()> {
    let RevokeArgs { id, place } = args;
    let Some(server) = &place.server else {
        check_exists(&place.storage)?;
        let mut stored = Stored::open(runtime, &place.storage)?;
        let token = stored.tokens.iter().find(|stored| stored.token().id == *id);
        let mut token = token.cloned().with_context(|| format!("there is no token {id}"))?;
        token.revoke(Utc::now());
        return stored.put(runtime, document(&token)?);
    };
    runtime.block_on(async {
        let client = client::builder()?.timeout(ANSWER_TIME).build()?;
        answer(server, client.delete(server.join(&format!("/api/v1/tokens/{id}"))?)).await
    })?;
    Ok(())
}

/// The tokens in the metadata, which no server may have open.
struct Stored {
    tokens: Vec<StoredToken>,
    metadata: Metadata,
    writer: MetadataWriter,
    _lock: std::fs::File,
}

impl Stored {
    fn open(runtime: &Runtime, storage: &StorageArgs) -> Result<Stored> {
        let data = std::path::absolute(&storage.data)?;
        data_dir::create(&data, &[]).with_context(|| format!("cannot create the data directory {}", data.display()))?;
        let lock = data_dir::lock(&data)
            .with_context(|| format!("a server has {} open: name it with --server URL", data.display()))?;
        let location = storage.location()?.unwrap_or_else(|| Location::File(metadata_path(&data)));
        runtime.block_on(async {
            let (metadata, writer) = Metadata::open(&location).await.context("cannot open the metadata")?;
            let tokens = metadata.documents(DocumentKind::Token).await?;
            let tokens = tokens.into_iter().map(|(_, stored)| stored).collect();
            Ok(Stored { tokens, metadata, writer, _lock: lock })
        })
    }

    fn put(&mut self, runtime: &Runtime, document: Document) -> Result<()> {
        runtime.block_on(async {
            let last = self.metadata.last_epoch().await?;
            let mut round = self.writer.begin(last).await?;
            round.put_documents(&[document], None).await?;
            round.commit().await?;
            Ok(())
        })
    }
}
