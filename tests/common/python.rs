//! A Python with third-party clients.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The imports that must work, and the packages that provide them, in the versions that the tests are known to pass with.
const IMPORTS: &str = "import adbc_driver_flightsql, adbc_driver_postgresql, asyncpg, deltalake, duckdb, greenlet, pandas, polars, psycopg, \
                       pyarrow, schemathesis, sqlalchemy";
const PACKAGES: [&str; 12] = [
    "adbc-driver-flightsql==1.13.0",
    "adbc-driver-manager==1.13.0",
    "adbc-driver-postgresql==1.13.0",
    "asyncpg==0.32.0",
    "deltalake==1.6.6",
    "duckdb==2.0.1",
    "pandas==3.1.1",
    "polars==2.1.0",
    "psycopg[binary]==3.3.9",
    "pyarrow==26.0.1",
    "schemathesis==4.32.5",
    "sqlalchemy[asyncio]==2.1.9",
];

/// The Python; its packages are installed once, below the build folder.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-clients");
        let python = folder.join("bin/python");
        let ready = |python: &Path| {
            let found = Command::new(python).args(["-c", IMPORTS]).output();
            found.is_ok_and(|output| output.status.success())
        };
        if !ready(&python) {
            let run = |program: &Path, arguments: &[&str]| {
                let output = Command::new(program).args(arguments).output().expect("it runs");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            };
            run(Path::new("python3"), &["-m", "venv", "--clear", folder.to_str().expect("text")]);
            run(&python, &[&["-m", "pip", "install", "--quiet"][..], &PACKAGES].concat());
            assert!(ready(&python), "the clients are installed");
        }
        python
    })
}
