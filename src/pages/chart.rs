//! Pictures in pages: stacked bars over time, small lines over time, and horizontal bars.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use maud::{Markup, html};
use serde_json::Value;

use super::parts::{grouped, items, number, shown, text};

/// The most bars that fit on a phone.
const BARS_MAX: i64 = 60;

/// The most points of a small line.
const SPARKS_MAX: i64 = 50;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 140.0;

/// Colours of groups that have none by their meaning: the first has the class `group-0`.
const GROUPS_MAX: usize = 6;

/// Stacked bars of the buckets of `/fleet/timeline`. `link` is the address of what happened between two times.
pub fn timeline(answer: &Value, label: &str, link: impl Fn(&str, &str) -> String) -> Markup {
    let seconds = i64::try_from(number(answer, "bucket_seconds")).unwrap_or(i64::MAX).max(1);
    let parsed = |bucket: &Value| Some(DateTime::parse_from_rfc3339(bucket["at"].as_str()?).ok()?.timestamp());
    let buckets: Vec<(i64, &str, u64)> = items(answer, "buckets")
        .iter()
        .filter_map(|bucket| Some((parsed(bucket)?, text(bucket, "group"), number(bucket, "count"))))
        .collect();
    let (Some(first), Some(last)) = (buckets.iter().map(|one| one.0).min(), buckets.iter().map(|one| one.0).max())
    else {
        return html! { p.quiet { "Nothing with a time." } };
    };
    // Longer spans have longer bars.
    let width_s = seconds * (((last - first) / seconds + BARS_MAX) / BARS_MAX);
    let bars = (last - first) / width_s + 1;
    let mut groups: BTreeMap<&str, u64> = BTreeMap::new();
    let mut counts: BTreeMap<(i64, &str), u64> = BTreeMap::new();
    for (at, group, count) in buckets {
        *groups.entry(group).or_default() += count;
        *counts.entry(((at - first) / width_s, group)).or_default() += count;
    }
    let mut groups: Vec<(&str, u64)> = groups.into_iter().collect();
    groups.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let total =
        |bar: i64| groups.iter().map(|(group, _)| counts.get(&(bar, *group)).copied().unwrap_or(0)).sum::<u64>();
    let highest = (0..bars).map(total).max().unwrap_or(1).max(1);
    let step = WIDTH / bars as f64;
    let at = |bar: i64| rfc3339(first + bar * width_s);
    html! {
        figure data-brush="" {
            figcaption { (label) }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="group" aria-label={ (label) ", at most " (grouped(highest)) " per bar" } preserveAspectRatio="none" {
                @for bar in 0..bars {
                    @let (since, until) = (at(bar), at(bar + 1));
                    @let all = total(bar);
                    a href=(link(&since, &until)) data-since=(since) data-until=(until) tabindex=[(all == 0).then_some("-1")]
                        aria-label={ (short(&since)) ": " (grouped(all)) } {
                        title { (short(&since)) ": " (grouped(all)) }
                        rect.empty x=(bar as f64 * step) y="0" width=(step) height=(HEIGHT) {}
                        @for (index, (low, high)) in stack(&groups, &counts, bar).into_iter().enumerate() {
                            @let height = |count: u64| HEIGHT * count as f64 / highest as f64;
                            @if high > low {
                                rect class=(class(groups[index].0, index)) x=(bar as f64 * step + step * 0.1)
                                    y=(HEIGHT - height(high)) width=(step * 0.8) height=(height(high - low)) {}
                            }
                        }
                    }
                }
            }
            @if answer["truncated"] == true { p.quiet { "There is more than the chart shows; choose a shorter time." } }
            div.axis { span { (short(&at(0))) } span { (short(&at(bars))) } }
            @if groups.len() > 1 || groups.first().is_some_and(|(name, _)| !name.is_empty()) {
                ul.legend {
                    @for (index, (group, count)) in groups.iter().enumerate().take(12) {
                        li { span class={ "swatch " (class(group, index)) } {} " "
                            (shown(if group.is_empty() { "none" } else { group })) " " span.quiet { (grouped(*count)) } }
                    }
                    @if groups.len() > 12 { li.quiet { "and " (groups.len() - 12) " more" } }
                }
            }
        }
    }
}

/// The lower and upper end of each group in a bar.
fn stack(groups: &[(&str, u64)], counts: &BTreeMap<(i64, &str), u64>, bar: i64) -> Vec<(u64, u64)> {
    let mut height = 0;
    let ends = groups.iter().map(|(group, _)| {
        let low = height;
        height += counts.get(&(bar, *group)).copied().unwrap_or(0);
        (low, height)
    });
    ends.collect()
}

fn class(group: &str, index: usize) -> String {
    match group {
        "critical" | "error" | "warning" | "info" => group.to_owned(),
        _ => format!("group-{}", index.min(GROUPS_MAX - 1)),
    }
}

fn rfc3339(second: i64) -> String {
    DateTime::<Utc>::from_timestamp(second, 0).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn short(time: &str) -> String {
    time.chars().take(16).map(|character| if character == 'T' { ' ' } else { character }).collect()
}

/// Small lines of the groups of `/fleet/timeline`, all over the same time.
pub struct Sparklines<'a> {
    groups: BTreeMap<&'a str, BTreeMap<i64, u64>>,
    first: i64,
    bars: i64,
}

impl<'a> Sparklines<'a> {
    /// The lines of an answer.
    pub fn of(answer: &'a Value) -> Sparklines<'a> {
        let seconds = i64::try_from(number(answer, "bucket_seconds")).unwrap_or(i64::MAX).max(1);
        let mut groups: BTreeMap<&str, BTreeMap<i64, u64>> = BTreeMap::new();
        for bucket in items(answer, "buckets") {
            let at = bucket["at"].as_str().and_then(|at| DateTime::parse_from_rfc3339(at).ok());
            if let Some(at) = at {
                let of_group = groups.entry(text(bucket, "group")).or_default();
                *of_group.entry(at.timestamp() / seconds).or_default() += number(bucket, "count");
            }
        }
        let all = || groups.values().flat_map(BTreeMap::keys).copied();
        let (first, last) = (all().min().unwrap_or(0), all().max().unwrap_or(0));
        Sparklines { first, bars: last - first + 1, groups }
    }

    /// Whether there is only one point in time, so that there are no lines.
    pub fn is_empty(&self) -> bool {
        self.bars <= 1
    }

    /// The line of a group; empty if it has none, or if there is only one point in time.
    pub fn line(&self, group: &str) -> Markup {
        let Some(counts) = self.groups.get(group).filter(|_| !self.is_empty()) else { return html! {} };
        let bars = self.bars.min(SPARKS_MAX);
        let mut points = vec![0_u64; usize::try_from(bars).unwrap_or(1)];
        for (at, count) in counts {
            let index = usize::try_from((at - self.first) * bars / self.bars).unwrap_or(0);
            if let Some(point) = points.get_mut(index) {
                *point += count;
            }
        }
        let highest = points.iter().copied().max().unwrap_or(1).max(1);
        let at = |(index, count): (usize, &u64)| {
            format!(
                "{:.1},{:.1}",
                100.0 * index as f64 / (bars - 1) as f64,
                19.0 - 18.0 * *count as f64 / highest as f64
            )
        };
        let line = points.iter().enumerate().map(at).collect::<Vec<_>>().join(" ");
        html! {
            svg.spark viewBox="0 0 100 20" preserveAspectRatio="none" role="img" aria-label={ "over time, at most " (grouped(highest)) } {
                polyline points=(line) {}
            }
        }
    }
}

/// A share as a bar beside its number.
pub fn share(part: f64) -> Markup {
    let part = part.clamp(0.0, 1.0);
    html! {
        svg.share viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
            rect.empty x="0" y="0" width="100" height="10" {}
            rect.group-0 x="0" y="0" width=(100.0 * part) height="10" {}
        }
        " " (format!("{:.1} %", 100.0 * part))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bars_are_links_to_their_time() {
        let answer = json!({"bucket_seconds": 3600, "buckets": [
            {"at": "2026-03-01T10:00:00Z", "group": "error", "count": 3},
            {"at": "2026-03-01T12:00:00Z", "group": "<b>", "count": 1},
            {"at": null, "group": "error", "count": 9},
        ]});
        let chart =
            timeline(&answer, "Occurrences", |since, until| format!("/x?since={since}&until={until}")).into_string();
        assert_eq!(chart.matches("<a href").count(), 3);
        assert!(chart.contains("/x?since=2026-03-01T10:00:00Z&amp;until=2026-03-01T11:00:00Z"), "{chart}");
        assert!(chart.contains("&lt;b&gt;") && !chart.contains("<b>"), "{chart}");
        // A year in hours has bars that are longer than an hour.
        let answer = json!({"bucket_seconds": 3600, "buckets": [
            {"at": "2025-03-01T10:00:00Z", "group": null, "count": 3}, {"at": "2026-03-01T12:00:00Z", "group": null, "count": 1},
        ]});
        let chart = timeline(&answer, "Occurrences", |_, _| String::new()).into_string();
        assert!(chart.matches("<a href").count() <= BARS_MAX as usize, "{chart}");
    }

    #[test]
    fn small_lines_share_their_time() {
        let day = |day: u32, group: &str, count: u64| json!({"at": format!("2026-03-{day:02}T00:00:00Z"), "group": group, "count": count});
        let answer = json!({"bucket_seconds": 86400, "buckets": [day(1, "A", 4), day(2, "A", 2), day(3, "B", 1)]});
        let lines = Sparklines::of(&answer);
        assert!(
            lines.line("A").into_string().contains("0.0,1.0 50.0,10.0 100.0,19.0"),
            "{}",
            lines.line("A").into_string()
        );
        assert!(lines.line("B").into_string().contains("0.0,19.0 50.0,19.0 100.0,1.0"));
        assert_eq!(lines.line("C").into_string(), "");
        let answer = json!({"bucket_seconds": 1, "buckets": [day(1, "A", 4), day(9, "A", 2)]});
        assert_eq!(Sparklines::of(&answer).line("A").into_string().matches(',').count() as i64, SPARKS_MAX + 1);
        assert_eq!(Sparklines::of(&json!({})).line("A").into_string(), "");
    }
}
