//! Pictures of reports, kept.
//!
//! A chart depends on what its report says and on nothing else, so it is kept
//! under the report's own name: as long as that says the same, the chart is the
//! same, and a report that says something else has another.
//!
//! - [`svg`]: a report as a picture;
//! - [`png`]: that as pixels.

pub mod png;
pub mod svg;

use std::sync::Arc;
use std::time::Duration;

use argus_query::cache::{Flights, Found, Redis};
use argus_query::turns::Turns;
use metrics::counter;

use crate::http::answer::Answer;
use crate::http::problem::Problem;

/// Charts may take this much memory (16 MiB).
const CHART_BYTES_MAX: u64 = 16 << 20;

/// Charts that are drawn at once, that wait for it, and for how long.
const DRAWN_MAX: usize = 2;
const WAITING_MAX: usize = 64;
const TURN_WAIT: Duration = Duration::from_secs(10);

/// What a chart is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChartFormat {
    /// Text that scales.
    Svg,
    /// Pixels.
    Png,
}

impl ChartFormat {
    fn content_type(self) -> &'static str {
        match self {
            ChartFormat::Svg => "image/svg+xml",
            ChartFormat::Png => "image/png",
        }
    }
}

/// Draws and keeps charts. Clones share them.
#[derive(Clone)]
pub struct Charts {
    flights: Flights<Key, Arc<Answer>, Problem>,
    redis: Option<Redis>,
    turns: Turns,
}

/// What a chart depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// The name of what the report says.
    report: String,
    top: usize,
    format: ChartFormat,
}

impl Charts {
    /// None yet.
    pub fn new(redis: Option<Redis>) -> Charts {
        let bytes_of = |key: &Key, chart: &Arc<Answer>| key.report.len() + chart.bytes() + 256;
        let turns = Turns::new(DRAWN_MAX, WAITING_MAX, TURN_WAIT);
        Charts { flights: Flights::new(CHART_BYTES_MAX, bytes_of), redis, turns }
    }

    /// The chart of a whole report, with at most `top` codes.
    pub async fn of_report(
        &self,
        report: Arc<Answer>,
        top: usize,
        format: ChartFormat,
    ) -> Result<(Arc<Answer>, Found), Problem> {
        let key = Key { report: report.name().to_owned(), top, format };
        let name = format!("chart/{format:?}/{top}/{}", key.report);
        let (redis, turns) = (self.redis.clone(), self.turns.clone());
        let compute = || async move {
            let drawn = async {
                let turn = turns.take().await?;
                counter!("argus_computed_total", "kind" => "chart").increment(1);
                let draw = move || {
                    // It is over when the chart is drawn, whether or not somebody still waits for it.
                    let _turn = turn;
                    draw(&report, top, format)
                };
                tokio::task::spawn_blocking(draw).await.map_err(|error| Problem::internal(&error))?
            };
            let chart = match redis {
                Some(redis) => redis.get(&name, drawn).await?,
                None => drawn.await?,
            };
            Ok(Arc::new(Answer::new(format.content_type(), chart)))
        };
        let (chart, found) = self.flights.get(key, compute).await;
        Ok((chart?, found))
    }
}

fn draw(report: &Answer, top: usize, format: ChartFormat) -> Result<Vec<u8>, Problem> {
    let report = serde_json::from_slice(report.body()).map_err(|error| Problem::internal(&error))?;
    let picture = svg::draw(&report, top);
    match format {
        ChartFormat::Svg => Ok(picture.into_bytes()),
        ChartFormat::Png => png::draw(&picture).map_err(|error| Problem::internal(&error)),
    }
}
