//! Upload: files or a folder become a batch.

use axum::extract::State;
use axum::response::Html;
use maud::html;

use super::api::Api;
use super::layout::{Section, page as whole_page};

/// `/upload`.
pub async fn page(State(_): State<Api>) -> Html<String> {
    let body = html! {
        h1 { "Upload" }
        form.upload data-upload="" {
            label { "Vehicle " input name="vehicle_id" required autocomplete="off"; }
            label { "VIN " input name="vin" required pattern="[A-HJ-NPR-Z0-9]{17}" title="17 characters A to Z and 0 to 9, without I, O and Q" autocomplete="off"; }
            label { "Firmware " input name="firmware" autocomplete="off"; }
            label { "Platform " input name="platform" autocomplete="off"; }
            label.drop { "Files, also compressed: choose them, or drop files or a folder here" input type="file" name="files" multiple; }
            label { "A folder " input type="file" name="folder" webkitdirectory; }
            button { "Upload" }
        }
        div id="uploads" aria-live="polite" {}
        noscript { p { "Uploads from this page need JavaScript." } }
        p { "On a terminal, over links that break: " code { "argus upload --vehicle ID --vin VIN --firmware VERSION LOGS" } }
    };
    whole_page("Upload", Section::Upload, None, &body)
}
