//! Charts: images of reports, drawn once for the same content.

mod common;

use common::{Server, VIN};
use reqwest::{Method, Response, StatusCode};
use resvg::tiny_skia::Pixmap;
use resvg::usvg::{Options, Tree};
use serde_json::json;

const CHARTS: &str = "argus_computed_total{kind=\"chart\"}";

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[tokio::test]
async fn a_chart_shows_its_report_and_is_drawn_once() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch_of(json!({"vehicle_id": "v", "vin": VIN, "platform": "p"})).await;
    let (svg, png) = (format!("/batches/{id}/chart.svg"), format!("/batches/{id}/chart.png"));
    // An empty batch has a chart with zeros.
    let empty = server.send(Method::GET, &svg, "").await.text().await.expect("text");
    assert!(empty.contains("0 codes, 0 occurrences") && !empty.contains("NaN"), "{empty}");
    let log = "E_FAIL </title><script>\u{1}\nE_FAIL\nE_OTHER\nKernel panic\nnothing\n";
    let receipt = server.put(&id, "a.log", log).await;
    server.complete(&id).await;
    let drawn = server.metric(CHARTS).await;
    let answer = server.send(Method::GET, &format!("{svg}?min_epoch={}", receipt["epoch"]), "").await;
    assert_eq!((answer.status(), header(&answer, "content-type")), (StatusCode::OK, "image/svg+xml"));
    let tag = header(&answer, "etag").to_owned();
    let picture = answer.text().await.expect("text");
    Tree::from_str(&picture, &Options::default()).expect("it is XML");
    for text in [
        "3 codes, 4 occurrences",
        "4 of 5 lines in 1 file",
        "E_FAIL",
        "E_OTHER",
        "KERNEL:PANIC",
        "new: for this vehicle",
    ] {
        assert!(picture.contains(text), "{text} in {picture}");
    }
    assert!(!picture.contains("<script>"), "{picture}");
    // Repeated and conditional requests get the cached chart.
    let again = server.send_with(Method::GET, &svg, &[("if-none-match", &tag)], Vec::new()).await;
    assert_eq!((again.status(), header(&again, "cache-status")), (StatusCode::NOT_MODIFIED, "argus; hit"));
    let answer = server.send(Method::GET, &png, "").await;
    assert_eq!((answer.status(), header(&answer, "content-type")), (StatusCode::OK, "image/png"));
    let pixels = Pixmap::decode_png(&answer.bytes().await.expect("a body")).expect("it is a PNG");
    let count = |wanted: [u8; 3]| {
        let is_wanted = |pixel: [u8; 3]| pixel.iter().zip(wanted).all(|(is, wanted)| is.abs_diff(wanted) < 2);
        pixels.pixels().iter().filter(|pixel| is_wanted([pixel.red(), pixel.green(), pixel.blue()])).count()
    };
    // Bars of two severities, and text; anti-aliased edges have other colours.
    let paper = count([255, 255, 255]);
    let (high, medium, ink) = (count([0xa4, 0x0e, 0x26]), count([0xd1, 0x57, 0x2c]), count([0x24, 0x29, 0x2f]));
    assert!(
        high > 3000 && medium > 3000 && ink > 1000 && paper > pixels.pixels().len() / 2,
        "{high} {medium} {ink} {paper}"
    );
    assert_eq!(server.metric(CHARTS).await, drawn + 2.0);
    // A batch of another vehicle changes the epoch, but not the report.
    let other = server.new_batch_of(json!({"vehicle_id": "w", "vin": VIN.replace('1', "2")})).await;
    let receipt = server.put(&other, "b.log", "E_FAIL\n").await;
    let same = server.send(Method::GET, &format!("{svg}?min_epoch={}", receipt["epoch"]), "").await;
    assert_eq!((header(&same, "etag"), server.metric(CHARTS).await), (&*tag, drawn + 2.0));
    // A changed report changes the chart.
    server.send(Method::POST, &format!("/batches/{id}/reopen"), "").await;
    server.put(&id, "a.log", "E_OTHER\n").await;
    server.complete(&id).await;
    let replaced = server.send(Method::GET, &svg, "").await.text().await.expect("text");
    assert!(replaced.contains("1 code, 1 occurrence") && !replaced.contains("E_FAIL"), "{replaced}");
}

#[tokio::test]
async fn fewer_codes_give_another_chart_and_bad_requests_are_refused() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let log: String = (0..30).map(|code| format!("E_FAIL_{code:02}\n")).collect();
    server.put(&id, "a.log", log).await;
    server.complete(&id).await;
    let bars = async |top: &str| {
        let answer = server.send(Method::GET, &format!("/batches/{id}/chart.svg{top}"), "").await;
        let picture = answer.text().await.expect("text");
        let others = ["and 10 more codes, 10 occurrences", "and 29 more codes, 29 occurrences", "more"];
        let others = others.iter().position(|others| picture.contains(others));
        (picture.matches("class=\"code\"").count(), others)
    };
    assert_eq!(bars("").await, (20, Some(0)));
    assert_eq!(bars("?top=1").await, (1, Some(1)));
    assert_eq!(bars("?top=100").await, (30, None));
    for (path, status) in [
        (format!("/batches/{id}/chart.svg?top=0"), 422),
        (format!("/batches/{id}/chart.png?top=101"), 422),
        (format!("/batches/{id}/chart.png?min_epoch=1000000&timeout_ms=1"), 504),
        ("/batches/01890000-0000-7000-8000-000000000000/chart.svg".to_owned(), 404),
        ("/batches/01890000-0000-7000-8000-000000000000/chart.png?min_epoch=1000000".to_owned(), 404),
        (format!("/batches/{id}/chart.gif"), 404),
    ] {
        let answer = server.send(Method::GET, &path, "").await;
        assert_eq!(
            (answer.status().as_u16(), header(&answer, "content-type")),
            (status, "application/problem+json"),
            "{path}"
        );
    }
}
