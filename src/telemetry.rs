//! The log on standard error, and traces.
//!
//! Spans: `request` (HTTP), `round` (a group commit of the pipeline), `commit` (of the lake), `query` (SQL). A request
//! continues the trace that its `traceparent` header names (W3C Trace Context). Traces are a convenience: a collector
//! that is away loses spans, and delays nothing.

use std::io::stderr;

use anyhow::{Context, Result};
use axum::http::HeaderMap;
use clap::ValueEnum;
use tracing::Span;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};
use url::Url;

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Sends the spans that are not sent yet when it is dropped.
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    traces: Option<traces::Provider>,
}

impl Telemetry {
    /// Starts the log as `ARGUS_LOG` filters it, with or without colours, and traces to a collector if `otlp` names one.
    pub fn start(format: LogFormat, colours: bool, otlp: Option<&Url>) -> Result<Telemetry> {
        let wanted = std::env::var("ARGUS_LOG").unwrap_or_else(|_| "warn,argus=info".to_owned());
        let filter = EnvFilter::try_new(&wanted)
            .with_context(|| format!("ARGUS_LOG {wanted:?} is invalid; use for example debug or argus=debug"))?;
        let log = tracing_subscriber::fmt::layer().with_writer(stderr);
        let log: Box<dyn Layer<Registry> + Send + Sync> = match format {
            LogFormat::Text => log.with_ansi(colours).with_filter(filter).boxed(),
            LogFormat::Json => log.json().flatten_event(true).with_filter(filter).boxed(),
        };
        #[cfg(feature = "otlp")]
        {
            let traces = otlp.map(traces::Provider::new).transpose()?;
            let layer = traces.as_ref().map(traces::Provider::layer);
            tracing_subscriber::registry().with(log).with(layer).init();
            Ok(Telemetry { traces })
        }
        #[cfg(not(feature = "otlp"))]
        {
            if otlp.is_some() {
                anyhow::bail!("this argus was built without --otlp; build it with the cargo feature otlp");
            }
            tracing_subscriber::registry().with(log).init();
            Ok(Telemetry {})
        }
    }
}

#[cfg(feature = "otlp")]
impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(traces) = self.traces.take() {
            traces.stop();
        }
    }
}

/// Makes a span part of the trace that the headers of a request name.
pub fn continue_trace(span: &Span, headers: &HeaderMap) {
    #[cfg(feature = "otlp")]
    traces::continue_trace(span, headers);
    #[cfg(not(feature = "otlp"))]
    let _ = (span, headers);
}

#[cfg(feature = "otlp")]
mod traces {
    use std::time::Duration;

    use anyhow::{Context, Result, ensure};
    use axum::http::HeaderMap;
    use opentelemetry::propagation::{Extractor, TextMapPropagator};
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_otlp::{SpanExporter, WithExportConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::{Level, Span, Subscriber};
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::registry::LookupSpan;
    use url::Url;

    /// The time limit of a request to the collector, and of the last one when the process ends.
    const EXPORT_TIME: Duration = Duration::from_secs(5);

    /// Sends spans to a collector, on a thread of its own.
    pub(super) struct Provider(SdkTracerProvider);

    impl Provider {
        /// `collector` is the base URL of OTLP over HTTP, for example `http://127.0.0.1:4318`.
        pub(super) fn new(collector: &Url) -> Result<Provider> {
            ensure!(
                matches!(collector.scheme(), "http" | "https"),
                "--otlp {collector}: only OTLP over HTTP is supported; use for example http://127.0.0.1:4318"
            );
            let base = collector.as_str().trim_end_matches('/');
            let endpoint = if base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") };
            let exporter = SpanExporter::builder().with_http().with_endpoint(&endpoint).with_timeout(EXPORT_TIME);
            let exporter = exporter.build().with_context(|| format!("cannot send traces to {endpoint}"))?;
            let resource = Resource::builder().with_service_name("argus").build();
            let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource);
            Ok(Provider(provider.build()))
        }

        /// Passes the spans of Argus to the collector.
        pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
        where
            S: Subscriber + for<'s> LookupSpan<'s> + Send + Sync,
        {
            let ours = ["argus", "argus_sinks", "argus_query"].map(|target| (target, Level::INFO));
            let tracer = self.0.tracer("argus");
            tracing_opentelemetry::layer().with_tracer(tracer).with_filter(Targets::new().with_targets(ours))
        }

        /// Sends what is left.
        pub(super) fn stop(self) {
            if let Err(error) = self.0.shutdown_with_timeout(EXPORT_TIME) {
                tracing::warn!(%error, "the last traces could not be sent");
            }
        }
    }

    struct Headers<'h>(&'h HeaderMap);

    impl Extractor for Headers<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key)?.to_str().ok()
        }

        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(|name| name.as_str()).collect()
        }
    }

    pub(super) fn continue_trace(span: &Span, headers: &HeaderMap) {
        if headers.contains_key("traceparent") {
            // An error means that there are no traces.
            let _ = span.set_parent(TraceContextPropagator::new().extract(&Headers(headers)));
        }
    }
}
