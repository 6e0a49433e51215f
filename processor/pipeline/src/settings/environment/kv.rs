//! The KV namespace and the token for it: the variables `CF_*`.

use reqwest::Url;
use taskpipeline_kv::KvSettings;

use super::Environment;

const CLOUDFLARE_API: &str = "https://api.cloudflare.com/client/v4";

impl Environment<'_> {
    pub(super) fn kv(&mut self) -> Option<KvSettings> {
        let base = self.text("CF_API_BASE_URL").unwrap_or_else(|| CLOUDFLARE_API.to_owned());
        let base = match Url::parse(&base) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => Some(url),
            _ => {
                self.problem("CF_API_BASE_URL", format!("must be an address such as {CLOUDFLARE_API}"));
                None
            }
        };
        let is_cloudflare = base
            .as_ref()
            .and_then(Url::host_str)
            .is_some_and(|host| host == "cloudflare.com" || host.ends_with(".cloudflare.com"));
        if is_cloudflare && base.as_ref().is_some_and(|url| url.scheme() == "http") {
            self.problem(
                "CF_API_BASE_URL",
                "must begin with https://: over http:// the token would be sent unencrypted",
            );
        }
        let account = self.text("CF_ACCOUNT_ID");
        if is_cloudflare && account.is_none() {
            self.required("CF_ACCOUNT_ID", "the id of your Cloudflare account");
        }
        let namespace = self.required("CF_NAMESPACE_ID", "the id of the KV namespace");
        let token = self.required("CF_API_TOKEN", "a token with Workers KV Storage: Edit");

        let mut url = base?;
        {
            let mut path = url.path_segments_mut().ok()?;
            path.pop_if_empty();
            if let Some(account) = &account {
                path.extend(["accounts", account]);
            }
            path.extend(["storage", "kv", "namespaces", &namespace]);
        }
        Some(KvSettings { namespace_url: url, token: token.into() })
    }
}
