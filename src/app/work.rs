//! The background tasks of the service, and how they stop.

use std::fs::File;

use anyhow::Result;
use argus_dataflow::Dataflow;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::ingest::Claims;
use crate::shutdown::Stopping;

/// The background tasks; they end with the service.
pub struct Work {
    pub(super) sequencer: JoinHandle<Result<()>>,
    pub(super) lake: JoinHandle<Result<()>>,
    pub(super) others: Vec<JoinHandle<()>>,
    pub(super) claims: Claims,
    pub(super) reclaimer: JoinHandle<()>,
    pub(super) stop: watch::Sender<Stopping>,
    pub(super) close_pipeline: oneshot::Sender<()>,
    pub(super) dataflow: Dataflow,
    /// The locks of the directories.
    pub(super) _locks: Vec<File>,
}

impl Work {
    /// Spawns another task, which must end when the server stops.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.others.push(tokio::spawn(task));
    }

    /// Announces that the server is stopping.
    pub fn announce(&self, stopping: Stopping) {
        self.stop.send_replace(stopping);
    }

    /// Returns only when a task fails.
    pub async fn failed(&mut self) -> anyhow::Error {
        let ended = tokio::select! {
            ended = &mut self.sequencer => ended,
            ended = &mut self.lake => ended,
        };
        match ended {
            Ok(Ok(())) => anyhow::anyhow!("the service stopped unexpectedly"),
            Ok(Err(error)) => error,
            Err(error) => error.into(),
        }
    }

    /// Accepts no more changes, and returns when everything accepted is
    /// committed to the lake. Requests that are still open fail.
    pub async fn finish(self) -> Result<()> {
        drop(self.close_pipeline);
        self.sequencer.await??;
        self.dataflow.stop();
        self.lake.await??;
        for other in self.others {
            other.await?;
        }
        self.claims.close();
        self.reclaimer.await?;
        Ok(())
    }
}
