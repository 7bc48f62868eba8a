//! Time functions that work for every time that a column can store.
//!
//! DataFusion's functions convert to nanoseconds in 64 bits, which end in the year 2262: one line
//! with a time in the year 9999 would make a chart over the whole table fail. These functions use
//! microseconds, as the tables do. `at_time_zone` is PostgreSQL's `AT TIME ZONE`.

use std::str::FromStr;
use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, StringArray, TimestampMicrosecondArray};
use arrow::compute::{cast, cast_with_options};
use arrow::datatypes::{
    DataType, FieldRef, IntervalMonthDayNanoType, IntervalUnit, TimeUnit, TimestampMicrosecondType,
};
use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Datelike, MappedLocalTime, NaiveDate, NaiveDateTime, Offset, TimeZone, Utc};
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// The state with these functions instead of DataFusion's.
pub(crate) fn with_times(mut state: SessionState) -> Result<SessionState> {
    for (name, of) in
        [("date_trunc", Kind::Trunc), ("date_bin", Kind::Bin), ("date_part", Kind::Part), ("to_char", Kind::Text)]
    {
        let inner = state.udf(name)?;
        state.register_udf(Arc::new(ScalarUDF::from(TimeFunction {
            inner,
            of,
            own: Signature::user_defined(Volatility::Immutable),
        })))?;
    }
    state.register_udf(Arc::new(ScalarUDF::from(Now::default())))?;
    state.register_udf(Arc::new(ScalarUDF::from(AtTimeZone::default())))?;
    Ok(state)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Trunc,
    Bin,
    Part,
    Text,
}

/// Replaces one of DataFusion's functions, which still handles all other arguments.
#[derive(Debug)]
struct TimeFunction {
    inner: Arc<ScalarUDF>,
    of: Kind,
    /// For arguments that are coerced here.
    own: Signature,
}

impl PartialEq for TimeFunction {
    fn eq(&self, other: &TimeFunction) -> bool {
        self.of == other.of
    }
}

impl Eq for TimeFunction {}

impl std::hash::Hash for TimeFunction {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.of.hash(state);
    }
}

impl ScalarUDFImpl for TimeFunction {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        match self.of {
            // DataFusion's signature would coerce the arguments to nanoseconds.
            Kind::Bin | Kind::Text => &self.own,
            Kind::Trunc | Kind::Part => self.inner.signature(),
        }
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        if let (Kind::Text, [DataType::Timestamp(..), _]) = (self.of, arg_types) {
            let zone = match &arg_types[0] {
                DataType::Timestamp(_, zone) => zone.clone(),
                _ => None,
            };
            return Ok(vec![DataType::Timestamp(TimeUnit::Microsecond, zone), DataType::Utf8]);
        }
        if let (Kind::Text, [kind, _]) = (self.of, arg_types) {
            return Ok(vec![kind.clone(), DataType::Utf8]);
        }
        let [_, time, origin @ ..] = arg_types else {
            return plan_err!("{} needs at least 2 arguments, not {}", self.name(), arg_types.len());
        };
        if self.of != Kind::Bin || origin.len() > 1 {
            return self.inner.coerce_types(arg_types);
        }
        let zone = match time {
            DataType::Timestamp(_, zone) => zone.clone(),
            _ => None,
        };
        let time = DataType::Timestamp(TimeUnit::Microsecond, zone);
        let origin = origin.iter().map(|_| DataType::Timestamp(TimeUnit::Nanosecond, None));
        Ok([DataType::Interval(IntervalUnit::MonthDayNano), time].into_iter().chain(origin).collect())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let result = match self.of {
            Kind::Trunc => trunc(&args)?,
            Kind::Bin => bin(&args)?,
            Kind::Part => epoch_of_interval(&args)?,
            Kind::Text => text(&args)?,
        };
        match result {
            Some(result) => Ok(result),
            None => self.inner.invoke_with_args(args),
        }
    }
}

/// Whether a value is a timestamp in microseconds, in UTC or without a time zone.
fn is_ours(value: &ColumnarValue) -> bool {
    match value.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, None) => true,
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) => matches!(&*zone, "UTC" | "+00:00" | "Z"),
        _ => false,
    }
}

/// Applies a function to each time; null where it returns `None`.
fn each(times: &ColumnarValue, of: impl Fn(i64) -> Option<i64>) -> Result<ColumnarValue> {
    let zone = match times.data_type() {
        DataType::Timestamp(_, zone) => zone,
        _ => None,
    };
    let is_one = matches!(times, ColumnarValue::Scalar(_));
    let times = times.to_array(1)?;
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let made: TimestampMicrosecondArray = times.iter().map(|time| time.and_then(&of)).collect();
    let made: ArrayRef = Arc::new(made.with_timezone_opt(zone));
    if is_one {
        Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&made, 0)?))
    } else {
        Ok(ColumnarValue::Array(made))
    }
}

fn trunc(args: &ScalarFunctionArgs) -> Result<Option<ColumnarValue>> {
    let [ColumnarValue::Scalar(unit), times] = &args.args[..] else { return Ok(None) };
    let Some(Some(unit)) = unit.try_as_str() else { return Ok(None) };
    if !is_ours(times) {
        return Ok(None);
    }
    let unit = unit.to_ascii_lowercase();
    let fixed = match unit.trim_end_matches('s') {
        "microsecond" => Some(1),
        "millisecond" => Some(1000),
        "second" => Some(MICROS_PER_SECOND),
        "minute" => Some(60 * MICROS_PER_SECOND),
        "hour" => Some(3600 * MICROS_PER_SECOND),
        "day" => Some(MICROS_PER_DAY),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return each(times, |time| Some(time - time.rem_euclid(fixed))).map(Some);
    }
    let first: fn(NaiveDate) -> Option<NaiveDate> = match unit.as_str() {
        "week" => |date| date.checked_sub_days(chrono::Days::new(u64::from(date.weekday().num_days_from_monday()))),
        "month" => |date| date.with_day(1),
        "quarter" => |date| date.with_day(1)?.with_month(date.month0() / 3 * 3 + 1),
        "year" => |date| NaiveDate::from_ymd_opt(date.year(), 1, 1),
        _ => return Ok(None),
    };
    let of = |time| {
        let date = first(DateTime::from_timestamp_micros(time)?.date_naive())?;
        Some(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())
    };
    each(times, of).map(Some)
}

/// `to_char(time, format)` with a literal strftime format.
fn text(args: &ScalarFunctionArgs) -> Result<Option<ColumnarValue>> {
    let [times, ColumnarValue::Scalar(format)] = &args.args[..] else { return Ok(None) };
    let Some(Some(format)) = format.try_as_str() else { return Ok(None) };
    if !is_ours(times) {
        return Ok(None);
    }
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return exec_err!("{format:?} is not a valid strftime format");
    }
    let times = times.to_array(args.number_rows)?;
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let texts: StringArray = times
        .iter()
        .map(|time| Some(DateTime::from_timestamp_micros(time?)?.format_with_items(items.iter()).to_string()))
        .collect();
    Ok(Some(ColumnarValue::Array(Arc::new(texts))))
}

/// `now()`, in microseconds as in PostgreSQL, so that it can be compared with any time of a table.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Now {
    signature: Signature,
    aliases: Vec<String>,
}

impl Default for Now {
    fn default() -> Self {
        Now { signature: Signature::nullary(Volatility::Stable), aliases: vec!["current_timestamp".to_owned()] }
    }
}

impl ScalarUDFImpl for Now {
    fn name(&self) -> &str {
        "now"
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
    }

    /// One time for the whole statement.
    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let Some(now) = info.query_execution_start_time() else { return Ok(ExprSimplifyResult::Original(args)) };
        let now = ScalarValue::TimestampMicrosecond(Some(now.timestamp_micros()), Some("UTC".into()));
        Ok(ExprSimplifyResult::Simplified(Expr::Literal(now, None)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let now = Utc::now().timestamp_micros();
        Ok(ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(Some(now), Some("UTC".into()))))
    }
}

fn bin(args: &ScalarFunctionArgs) -> Result<Option<ColumnarValue>> {
    let (stride, times, origin) = match &args.args[..] {
        [ColumnarValue::Scalar(stride), times] => (stride, times, None),
        [ColumnarValue::Scalar(stride), times, ColumnarValue::Scalar(origin)] => (stride, times, Some(origin)),
        _ => return Ok(None),
    };
    let stride = match stride {
        ScalarValue::IntervalMonthDayNano(Some(interval))
            if interval.months == 0 && interval.nanoseconds % 1000 == 0 =>
        {
            i64::from(interval.days)
                .checked_mul(MICROS_PER_DAY)
                .and_then(|days| days.checked_add(interval.nanoseconds / 1000))
        }
        _ => None,
    };
    let Some(stride) = stride.filter(|&stride| stride > 0 && is_ours(times)) else { return Ok(None) };
    let origin = match origin {
        None => 0,
        Some(origin) => {
            let origin = origin.to_array_of_size(1)?;
            let origin = cast(&origin, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
            let origin = origin.as_primitive::<TimestampMicrosecondType>();
            match origin.is_valid(0) {
                true => origin.value(0),
                false => return Ok(None),
            }
        }
    };
    each(times, |time| {
        let since = i128::from(time) - i128::from(origin);
        i64::try_from(i128::from(time) - since.rem_euclid(i128::from(stride))).ok()
    })
    .map(Some)
}

/// `extract(epoch FROM interval)`: the seconds with their fraction, for months of 30 days and years of 365.25 days
/// (PostgreSQL, 9.9.1). DataFusion drops the fraction.
fn epoch_of_interval(args: &ScalarFunctionArgs) -> Result<Option<ColumnarValue>> {
    let [ColumnarValue::Scalar(part), intervals] = &args.args[..] else { return Ok(None) };
    let is_epoch = part.try_as_str().flatten().is_some_and(|part| part.eq_ignore_ascii_case("epoch"));
    let is_interval = matches!(intervals.data_type(), DataType::Interval(_) | DataType::Duration(_));
    if !is_epoch || !is_interval || args.return_field.data_type() != &DataType::Float64 {
        return Ok(None);
    }
    let values = intervals.to_array(args.number_rows)?;
    let seconds: Float64Array = match values.data_type() {
        DataType::Duration(_) => {
            let nanos = cast(&cast(&values, &DataType::Duration(TimeUnit::Nanosecond))?, &DataType::Int64)?;
            let nanos = nanos.as_primitive::<arrow::datatypes::Int64Type>();
            nanos.iter().map(|nanos| nanos.map(|nanos| nanos as f64 / 1e9)).collect()
        }
        _ => {
            let intervals = cast(&values, &DataType::Interval(IntervalUnit::MonthDayNano))?;
            let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>();
            intervals
                .iter()
                .map(|interval| {
                    interval.map(|interval| {
                        let (years, months) = (f64::from(interval.months / 12), f64::from(interval.months % 12));
                        let days = years * 365.25 + months * 30.0 + f64::from(interval.days);
                        days * 86_400.0 + interval.nanoseconds as f64 / 1e9
                    })
                })
                .collect()
        }
    };
    Ok(Some(ColumnarValue::Array(Arc::new(seconds))))
}

/// `at_time_zone(time, zone)`: converts an instant to local time, and local time to an instant.
#[derive(Debug, PartialEq, Eq, Hash)]
struct AtTimeZone {
    signature: Signature,
}

impl Default for AtTimeZone {
    fn default() -> Self {
        AtTimeZone { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for AtTimeZone {
    fn name(&self) -> &str {
        "at_time_zone"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let zone = match types.first() {
            Some(DataType::Timestamp(_, None)) => Some("UTC".into()),
            // As in PostgreSQL, a date or a text is an instant.
            _ => None,
        };
        Ok(DataType::Timestamp(TimeUnit::Microsecond, zone))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [times, ColumnarValue::Scalar(zone)] = &args.args[..] else {
            return exec_err!("AT TIME ZONE needs a literal time zone, as in AT TIME ZONE 'Europe/Berlin'");
        };
        let Some(zone) = zone.try_as_str().flatten() else {
            return exec_err!("AT TIME ZONE needs the name of a time zone, as in AT TIME ZONE 'Europe/Berlin'");
        };
        let Some(known) = zone_of(zone) else {
            return exec_err!("unknown time zone {zone:?}; use a name such as 'Europe/Berlin'");
        };
        let is_local = matches!(times.data_type(), DataType::Timestamp(_, None));
        let micros = DataType::Timestamp(TimeUnit::Microsecond, (!is_local).then(|| "UTC".into()));
        let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
        let times = cast_with_options(&times.to_array(args.number_rows)?, &micros, &options)?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let of = |time| if is_local { instant(time, &known) } else { local(time, &known) };
        let made: TimestampMicrosecondArray = times.iter().map(|time| time.and_then(of)).collect();
        let made = if is_local { made.with_timezone("UTC") } else { made };
        Ok(ColumnarValue::Array(Arc::new(made)))
    }
}

fn zone_of(name: &str) -> Option<Tz> {
    // PostgreSQL accepts these names in any case.
    let name = if name.eq_ignore_ascii_case("utc") || name.eq_ignore_ascii_case("gmt") { "UTC" } else { name };
    Tz::from_str(name).ok()
}

fn local(time: i64, zone: &Tz) -> Option<i64> {
    let time = DateTime::from_timestamp_micros(time)?.naive_utc();
    let offset = zone.offset_from_utc_datetime(&time).fix().local_minus_utc();
    micros(time).checked_add(i64::from(offset) * MICROS_PER_SECOND)
}

fn instant(time: i64, zone: &Tz) -> Option<i64> {
    let time = DateTime::<Utc>::from_timestamp_micros(time)?.naive_utc();
    let offset = match zone.offset_from_local_datetime(&time) {
        MappedLocalTime::Single(offset) => offset,
        // When clocks go back, an hour occurs twice: PostgreSQL uses the second.
        MappedLocalTime::Ambiguous(_, second) => second,
        // When they go forward, an hour is skipped: PostgreSQL uses the offset before the change.
        MappedLocalTime::None => zone.offset_from_utc_datetime(&(time - chrono::TimeDelta::hours(24))),
    };
    micros(time).checked_sub(i64::from(offset.fix().local_minus_utc()) * MICROS_PER_SECOND)
}

fn micros(time: NaiveDateTime) -> i64 {
    time.and_utc().timestamp_micros()
}
