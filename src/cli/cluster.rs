//! The flags of a process in a cluster.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cluster::ClusterConfig;

/// Several processes on one metadata database and one store.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// The number of processes that share the metadata and the store. One of them leads; each answers every request.
    #[arg(long, env = "ARGUS_PROCESSES", default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub processes: u16,
    /// The number of this process, from 0.
    #[arg(long, env = "ARGUS_PROCESS", default_value_t = 0, value_name = "NUMBER")]
    pub process: u16,
    /// A file with a line HOST:PORT for each process, by which the others reach it: not the address of --listen. It must be
    /// the same for all processes, on a network that only they use: what they send each other is not encrypted.
    #[arg(long, env = "ARGUS_HOSTS", value_name = "FILE")]
    pub hosts: Option<PathBuf>,
}

impl ClusterArgs {
    /// The cluster, if there is one.
    pub fn cluster(&self) -> Result<Option<ClusterConfig>> {
        match &self.hosts {
            None if self.processes == 1 => Ok(None),
            None => anyhow::bail!("--processes {} needs --hosts FILE, with a line HOST:PORT for each", self.processes),
            Some(file) => ClusterConfig::read(self.processes.into(), self.process.into(), file).map(Some),
        }
    }
}
