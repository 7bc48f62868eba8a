//! What other programs are told of the tables, in files beside them: how they are read, and views that do so.

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

const FILES: [(&str, &str); 3] = [
    ("README.md", include_str!("guide/README.md")),
    ("views.sql", include_str!("guide/views.sql")),
    ("polars_views.py", include_str!("guide/polars_views.py")),
];

/// Stands in the guide for the lake's own folder.
const FOLDER: &str = "FOLDER";

/// Writes the guide beside the tables at `lake`, where it is not there as it is.
pub(crate) async fn write(store: &dyn ObjectStore, lake: &Url) -> object_store::Result<()> {
    let folder = Path::from_url_path(lake.path())?;
    let named = match lake.to_file_path() {
        Ok(path) => path.to_string_lossy().trim_end_matches('/').to_owned(),
        Err(()) => lake.as_str().trim_end_matches('/').to_owned(),
    };
    for (name, text) in FILES {
        let (path, text) = (folder.clone().join(name), text.replace(FOLDER, &named));
        let there = match store.get(&path).await {
            Ok(there) => there.bytes().await.ok(),
            Err(_) => None,
        };
        if there.is_none_or(|there| there != text.as_bytes()) {
            store.put(&path, text.into()).await?;
        }
    }
    Ok(())
}
