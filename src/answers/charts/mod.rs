//! Charts of reports, cached.
//!
//! A chart depends only on the content of its report, so its cache key is the
//! report's entity tag. A report with other content has another tag, and so
//! another chart.
//!
//! - [`svg`]: draws a report as SVG;
//! - `png`: renders the SVG as PNG.

#[cfg(feature = "png")]
pub mod png;
pub mod svg;

use std::sync::Arc;
use std::time::Duration;

use argus_query::cache::{Found, Redis, SingleFlight};
use argus_query::engine::admission::Admission;
use metrics::counter;

use crate::answers::answer::{Answer, AnswerError};

/// The memory limit of cached charts (16 MiB).
const CHART_BYTES_MAX: u64 = 16 << 20;

/// How many charts are drawn at once, how many requests wait for a permit, and for how long.
const DRAWN_MAX: usize = 2;
const WAITING_MAX: usize = 64;
const PERMIT_WAIT: Duration = Duration::from_secs(10);

/// The format of a chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChartFormat {
    /// Vector graphics.
    Svg,
    /// Pixels.
    #[cfg(feature = "png")]
    Png,
}

impl ChartFormat {
    fn content_type(self) -> &'static str {
        match self {
            ChartFormat::Svg => "image/svg+xml",
            #[cfg(feature = "png")]
            ChartFormat::Png => "image/png",
        }
    }
}

/// Draws and caches charts. Clones share the cache.
#[derive(Clone)]
pub struct Charts {
    cache: SingleFlight<ChartKey, Arc<Answer>, AnswerError>,
    redis: Option<Redis>,
    admission: Admission,
}

/// What a chart depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ChartKey {
    /// The entity tag of the report.
    report: String,
    top: usize,
    format: ChartFormat,
}

impl Charts {
    /// An empty cache.
    pub fn new(redis: Option<Redis>) -> Charts {
        let bytes_of = |key: &ChartKey, chart: &Arc<Answer>| key.report.len() + chart.bytes() + 256;
        let admission = Admission::new(DRAWN_MAX, WAITING_MAX, PERMIT_WAIT);
        Charts { cache: SingleFlight::new(CHART_BYTES_MAX, bytes_of), redis, admission }
    }

    /// The chart of a whole report, with at most `top` codes.
    pub async fn of_report(
        &self,
        report: Arc<Answer>,
        top: usize,
        format: ChartFormat,
    ) -> Result<(Arc<Answer>, Found), AnswerError> {
        let key = ChartKey { report: report.tag().to_owned(), top, format };
        let name = format!("chart/{format:?}/{top}/{}", key.report);
        let (redis, admission) = (self.redis.clone(), self.admission.clone());
        let compute = || async move {
            let drawn = async {
                let permit = admission.take().await?;
                counter!("argus_computed_total", "kind" => "chart").increment(1);
                let draw = move || {
                    // The permit is held until the chart is drawn, even if no request waits for it any more.
                    let _permit = permit;
                    draw(&report, top, format)
                };
                tokio::task::spawn_blocking(draw).await.map_err(AnswerError::write)?
            };
            let chart = match redis {
                Some(redis) => redis.get(&name, drawn).await?,
                None => drawn.await?,
            };
            Ok(Arc::new(Answer::new(format.content_type(), chart)))
        };
        let (chart, found) = self.cache.get(key, compute).await;
        Ok((chart?, found))
    }
}

fn draw(report: &Answer, top: usize, format: ChartFormat) -> Result<Vec<u8>, AnswerError> {
    let report = serde_json::from_slice(report.body()).map_err(AnswerError::write)?;
    let svg = svg::draw(&report, top);
    match format {
        ChartFormat::Svg => Ok(svg.into_bytes()),
        #[cfg(feature = "png")]
        ChartFormat::Png => png::draw(&svg).map_err(AnswerError::write),
    }
}
