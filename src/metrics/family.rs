//! Metric families as the registry's encoder wants them.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::cells::BOUNDS;

/// One metric family being put together.
pub(super) struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    metrics: Vec<Metric>,
}

impl Family {
    fn new(name: &'static str, help: &'static str, kind: MetricType) -> Self {
        Family { name, help, kind, metrics: Vec::new() }
    }

    pub(super) fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    pub(super) fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    pub(super) fn histogram(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::HISTOGRAM)
    }

    pub(super) fn value(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut metric = Metric::from_label(label_pairs(labels));
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    pub(super) fn histogram_value(&mut self, labels: &[(&str, &str)], buckets: &[u64; BOUNDS.len() + 1], nanos: u64) {
        let mut cumulative = 0;
        let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]);
        let filled = bounds.zip(buckets).map(|(bound, count)| {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(filled.collect());
        histogram.set_sample_count(cumulative);
        histogram.set_sample_sum(nanos as f64 / 1e9);
        let mut metric = Metric::from_label(label_pairs(labels));
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    /// The family, or nothing when it has no values: the text format has no empty families.
    pub(super) fn finish(self) -> Option<MetricFamily> {
        let mut family = MetricFamily::default();
        family.set_name(self.name.into());
        family.set_help(self.help.into());
        family.set_field_type(self.kind);
        family.set_metric(self.metrics);
        (!family.get_metric().is_empty()).then_some(family)
    }
}

fn label_pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).into());
        pair.set_value((*value).into());
        pair
    });
    pairs.collect()
}
