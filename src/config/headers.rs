//! Header fields that a file sets or removes.

use http::{HeaderName, HeaderValue};

use super::document::Section;
use super::resolve::Context;
use super::settings::HeaderChanges;

/// Fields whose meaning is the proxy's own business: changing them would break framing or routing.
const OURS: [&str; 7] = ["connection", "transfer-encoding", "content-length", "host", "upgrade", "te", "trailer"];

pub(super) fn resolve(context: &Context<'_>, section: &Section<'_>) -> HeaderChanges {
    let set = section.text_map("set").into_iter().filter_map(|(name, value)| {
        let parsed = header_name(context, &name.value, name.span.clone());
        let Ok(value) = HeaderValue::try_from(value) else {
            context.error(name.span, format!("the value of `{}` has bytes that no header may have", name.value), None);
            return None;
        };
        Some((parsed?, value))
    });
    let set = set.collect();
    let remove = section.texts("remove").into_iter().filter_map(|name| header_name(context, &name.value, name.span));
    HeaderChanges { set, remove: remove.collect() }
}

fn header_name(context: &Context<'_>, name: &str, span: std::ops::Range<usize>) -> Option<HeaderName> {
    match HeaderName::try_from(name) {
        Ok(parsed) if OURS.contains(&parsed.as_str()) => {
            context.error(span, format!("`{name}` is set by the proxy and cannot be changed"), None);
            None
        }
        Ok(parsed) => Some(parsed),
        Err(_) => {
            context.error(span, format!("\"{name}\" is no header name"), None);
            None
        }
    }
}
