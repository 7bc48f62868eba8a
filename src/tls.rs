//! TLS of the servers: a certificate and its key from files, read again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long a client may take to agree on the encryption.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// The files of a certificate, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by those that sign it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, or has something else.
    #[error("cannot read {} from {}: {reason}", what, path.display())]
    File {
        /// What it should have.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key does not belong to the certificate, or is of an unknown kind.
    #[error("the key {} does not fit the certificate {}: {reason}", key.display(), cert.display())]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        reason: rustls::Error,
    },
    /// The library refuses its own defaults.
    #[error(transparent)]
    Library(#[from] rustls::Error),
}

/// The current certificate. Clones share it.
#[derive(Debug, Clone)]
pub struct Certificate {
    files: TlsFiles,
    /// When the files had changed last before they were read.
    changed_at: [Option<SystemTime>; 2],
    current: Arc<RwLock<Arc<CertifiedKey>>>,
}

impl Certificate {
    /// Reads the files.
    pub fn read(files: TlsFiles) -> Result<Certificate, TlsError> {
        let changed_at = changed_at(&files);
        let key = Arc::new(certified_key(&files)?);
        Ok(Certificate { files, changed_at, current: Arc::new(RwLock::new(key)) })
    }

    /// Accepts connections with the certificate of that moment.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Reads the files again when they change. Files that cannot be used are logged, and the certificate stays.
    pub async fn follow_changes(self) {
        let mut last = self.changed_at;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = changed_at(&self.files);
            if now == last {
                continue;
            }
            last = now;
            match certified_key(&self.files) {
                Ok(key) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                    tracing::info!(cert = %self.files.cert.display(), "the certificate was read again");
                }
                Err(error) => tracing::error!(%error, "the changed certificate is not used"),
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn changed_at(files: &TlsFiles) -> [Option<SystemTime>; 2] {
    let of = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    [of(&files.cert), of(&files.key)]
}

fn certified_key(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let TlsFiles { cert, key } = files;
    let unreadable = |what, path: &Path, reason: String| TlsError::File { what, path: path.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| unreadable("a certificate", cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(unreadable("a certificate", cert, "it has no section CERTIFICATE in PEM".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key);
    let private = private.map_err(|error| unreadable("a private key", key, error.to_string()))?;
    CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|reason| TlsError::Mismatch {
        cert: cert.clone(),
        key: key.clone(),
        reason,
    })
}
