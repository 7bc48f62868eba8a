//! Files stored next to the tables for other programs: a README that explains how to read them, and views.

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

const FILES: [(&str, &str); 3] = [
    ("README.md", include_str!("README.md")),
    ("views.sql", include_str!("views.sql")),
    ("polars_views.py", include_str!("polars_views.py")),
];

/// Placeholder in the files for the lake's folder.
const FOLDER: &str = "FOLDER";

/// Writes the files into the folder `lake`, unless they exist with the same content.
pub(crate) async fn write(store: &dyn ObjectStore, lake: &Url) -> object_store::Result<()> {
    let folder = Path::from_url_path(lake.path())?;
    let named = match lake.to_file_path() {
        Ok(path) => path.to_string_lossy().trim_end_matches('/').to_owned(),
        Err(()) => lake.as_str().trim_end_matches('/').to_owned(),
    };
    for (name, text) in FILES {
        let (path, text) = (folder.clone().join(name), text.replace(FOLDER, &named));
        let existing = match store.get(&path).await {
            Ok(existing) => existing.bytes().await.ok(),
            Err(_) => None,
        };
        if existing.is_none_or(|existing| existing != text.as_bytes()) {
            store.put(&path, text.into()).await?;
        }
    }
    Ok(())
}
