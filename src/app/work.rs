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
    /// `None` in a process that follows.
    pub(super) sequencer: Option<JoinHandle<Result<()>>>,
    /// The lake, or its replica.
    pub(super) lake: JoinHandle<Result<()>>,
    pub(super) others: Vec<JoinHandle<()>>,
    pub(super) claims: Claims,
    pub(super) reclaimer: JoinHandle<()>,
    pub(super) stop: watch::Sender<Stopping>,
    /// Ends the sequencer, or in a process that follows, the replica.
    pub(super) close: oneshot::Sender<()>,
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
        let sequencer = async {
            match &mut self.sequencer {
                Some(sequencer) => sequencer.await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = sequencer => ended,
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
        drop(self.close);
        if let Some(sequencer) = self.sequencer {
            sequencer.await??;
        }
        self.dataflow.stop();
        self.lake.await??;
        for other in self.others {
            other.await?;
        }
        self.claims.close();
        self.reclaimer.await?;
        Ok(())
    }

    /// Ends the tasks of a process whose replica has failed: see [`Work::failed`].
    pub async fn finish_without_lake(self) {
        drop(self.close);
        self.dataflow.stop();
        self.claims.close();
        for other in self.others.into_iter().chain([self.reclaimer]) {
            // What a task of a replica has not done, nobody waits for.
            let _ = other.await;
        }
    }
}
