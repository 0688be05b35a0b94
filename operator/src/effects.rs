//! Everything that the operator writes goes through here: when it is its turn,
//! under a timeout, only while the claim to lead holds, counted by verb and kind.

use std::cell::Cell;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crds::name::FIELD_MANAGER;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::core::ObjectList;
use kube::runtime::events::{Event, Recorder, Reporter};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::key::Key;
use crate::leader::Claim;
use crate::metrics::{Metrics, Verb};
use crate::settings::Settings;
use crate::turns::Turns;

tokio::task_local! {
    /// The first write of the reconciliation that runs is still to come: of which
    /// kind it is, and when the event came that it answers.
    static ASKED: Cell<Option<(&'static str, Instant)>>;
    /// Since when there is something to do for the deployment whose calls these are.
    static ORDER: Instant;
}

/// Runs a reconciliation whose calls wait behind those that are older.
pub async fn in_order<T>(since: Instant, work: impl Future<Output = T>) -> T {
    ORDER.scope(since, work).await
}

fn order() -> Instant {
    let order = ORDER.try_with(|since| *since);
    order.unwrap_or_else(|_| shell::clock::now())
}

/// Runs a reconciliation so that its first write tells how late it came. Returns when
/// the event came, too, if nothing was written that answers it.
pub async fn answering<T>(
    kind: &'static str,
    asked: Option<Instant>,
    work: impl Future<Output = T>,
) -> (T, Option<Instant>) {
    let asked = Cell::new(asked.map(|asked| (kind, asked)));
    let work = async {
        let done = work.await;
        (done, ASKED.with(Cell::get).map(|(_, asked)| asked))
    };
    ASKED.scope(asked, work).await
}

/// The API server as the controllers see it.
#[derive(Clone)]
pub struct Effects {
    client: Client,
    claim: Claim,
    turns: Arc<Turns>,
    timeout: Duration,
    recorder: Recorder,
    metrics: Metrics,
}

/// A call that did not do what it was to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {kind} {key}: {source}")]
pub struct EffectError {
    verb: &'static str,
    kind: String,
    key: Key,
    source: Cause,
}

/// Why it did not.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The API server answered with an error, or not in HTTP.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// No answer in time; the write may have happened.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Somebody else may lead by now.
    #[error("the claim to lead has ended")]
    NotLeading,
}

impl EffectError {
    /// The API server's own words, when it refused the object.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match &self.source {
            Cause::Api(kube::Error::Api(status)) if (400..500).contains(&status.code) => {
                Some(&status.message)
            }
            _ => None,
        }
    }

    /// Whether an object of that name exists already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        matches!(&self.source, Cause::Api(kube::Error::Api(status)) if status.is_already_exists())
    }

    /// Whether the object, or its namespace, is gone or going.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match &self.source {
            Cause::Api(kube::Error::Api(status)) => {
                status.is_not_found()
                    || (status.is_forbidden() && status.message.contains("is being terminated"))
            }
            _ => false,
        }
    }

    /// Whether a write may have happened all the same: nobody said that it did not.
    #[must_use]
    pub fn leaves_doubt(&self) -> bool {
        match &self.source {
            Cause::Timeout(_) => true,
            Cause::NotLeading => false,
            Cause::Api(kube::Error::Api(status)) => status.code >= 500,
            Cause::Api(_) => true,
        }
    }

    /// Whether the object changed its identity under us.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(&self.source, Cause::Api(kube::Error::Api(status)) if status.is_conflict())
    }
}

/// What the objects have that are written: a namespace and a kind known at compile time.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

impl Effects {
    /// Writes as long as `claim` holds; Events name `instance`.
    #[must_use]
    pub fn new(
        client: Client,
        claim: Claim,
        settings: &Settings,
        instance: Option<String>,
        metrics: Metrics,
    ) -> Self {
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance,
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            claim,
            turns: Arc::new(Turns::new(settings.concurrency)),
            timeout: settings.call_timeout,
            metrics,
        }
    }

    /// Whether so much has to be written that what can wait should.
    #[must_use]
    pub fn are_busy(&self) -> bool {
        self.turns.are_short(shell::clock::now())
    }

    /// Creates an object that must not exist yet.
    ///
    /// # Errors
    /// When the API server refuses it, does not answer, or we no longer lead.
    pub async fn create<K: Object>(&self, object: &K) -> Result<K, EffectError> {
        let key = Key::of(object);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let api = self.api::<K>(&key);
        self.write::<K, _>(Verb::Create, &key, api.create(&params, object))
            .await
    }

    /// Server-side apply: the fields that we name are ours.
    ///
    /// # Errors
    /// When the API server refuses it, does not answer, or we no longer lead.
    pub async fn apply<K: Object>(
        &self,
        key: &Key,
        object: &serde_json::Value,
    ) -> Result<K, EffectError> {
        let api = self.api::<K>(key);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(object);
        self.write::<K, _>(Verb::Apply, key, api.patch(&key.name, &params, &patch))
            .await
    }

    /// Writes the status of an object that has it already. Whoever computed it
    /// knew this version of the object: if there is a newer one, or a successor of
    /// the same name, nothing is written and the error is a conflict. An update
    /// merges nothing, and a status has one writer. One that `answers` no event had
    /// its time: it is not measured as an answer, and takes its turn behind those.
    ///
    /// # Errors
    /// When the API server refuses it, does not answer, or we no longer lead.
    pub async fn report<K: Object>(&self, object: &K, answers: bool) -> Result<K, EffectError> {
        let key = Key::of(object);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let api = self.api::<K>(&key);
        let call = api.replace_status(&key.name, &params, object);
        let write = self.write::<K, _>(Verb::Status, &key, call);
        if answers {
            write.await
        } else {
            ASKED.scope(Cell::new(None), write).await
        }
    }

    /// Deletes this very object. `foreground` keeps it visible until what it
    /// owns is gone. An object that is gone already is fine.
    ///
    /// # Errors
    /// When the API server refuses it, does not answer, or we no longer lead.
    pub async fn delete<K: Object>(
        &self,
        key: &Key,
        uid: &str,
        foreground: bool,
    ) -> Result<(), EffectError> {
        let api = self.api::<K>(key);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            propagation_policy: foreground.then_some(PropagationPolicy::Foreground),
            ..DeleteParams::default()
        };
        let deleted = self
            .write::<K, _>(Verb::Delete, key, api.delete(&key.name, &params))
            .await;
        match deleted {
            Err(error) if !error.is_gone() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads past every cache.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn get<K: Object>(&self, key: &Key) -> Result<Option<K>, EffectError> {
        let api = self.api::<K>(key);
        self.read("get", K::kind(&()).into(), key, api.get_opt(&key.name))
            .await
    }

    /// Reads a cluster-scoped object past every cache.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn get_cluster<K>(&self, name: &str) -> Result<Option<K>, EffectError>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let api = Api::<K>::all(self.client.clone());
        let key = Key::new("", name);
        self.read("get", K::kind(&()).into(), &key, api.get_opt(name))
            .await
    }

    /// Lists past every cache.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn list<K: Object>(
        &self,
        namespace: &str,
        params: &ListParams,
    ) -> Result<ObjectList<K>, EffectError> {
        let key = Key::new(namespace, "");
        let api = self.api::<K>(&key);
        self.read("list", K::kind(&()).into(), &key, api.list(params))
            .await
    }

    /// Tells people. Events are a courtesy: a failure is logged and no more.
    pub async fn tell<K: Object>(&self, about: &K, event: Event) {
        let _turn = self.turns.take(false, order()).await;
        let Some(limit) = self.write_limit() else {
            return;
        };
        let reference = about.object_ref(&());
        let published = self.recorder.publish(&event, &reference);
        match tokio::time::timeout(limit, published).await {
            Ok(Ok(())) => self.metrics.wrote(Verb::Create, "Event"),
            Ok(Err(error)) => tracing::debug!(%error, reason = event.reason, "event not published"),
            Err(_) => tracing::debug!(reason = event.reason, "event not published in time"),
        }
    }

    async fn write<K: Object, T>(
        &self,
        verb: Verb,
        key: &Key,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, EffectError> {
        let kind = K::kind(&());
        let first = ASKED.try_with(|asked| asked.get().is_some());
        let _turn = self.turns.take(first.unwrap_or(false), order()).await;
        let Some(limit) = self.write_limit() else {
            return Err(EffectError {
                verb: verb.as_str(),
                kind: kind.into(),
                key: key.clone(),
                source: Cause::NotLeading,
            });
        };
        let done = self
            .within(limit, verb.as_str(), kind.to_string(), key, call)
            .await;
        if done.is_ok()
            && let Ok(Some((of, asked))) = ASKED.try_with(Cell::take)
        {
            let now = shell::clock::now();
            self.metrics
                .reacted(of, now.saturating_duration_since(asked));
        }
        match &done {
            Ok(_) => {
                self.metrics.wrote(verb, &kind);
                tracing::debug!(verb = verb.as_str(), %kind, %key, "wrote");
            }
            // Somebody was quicker: what was to be written is no longer true.
            Err(error) if error.is_conflict() || error.is_gone() => {
                tracing::debug!(%error, "outdated");
            }
            Err(error) => {
                self.metrics.failed(verb, &kind);
                tracing::debug!(%error, "write failed");
            }
        }
        done
    }

    async fn read<T>(
        &self,
        verb: &'static str,
        kind: String,
        key: &Key,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, EffectError> {
        let _turn = self.turns.take(false, order()).await;
        self.within(self.timeout, verb, kind, key, call).await
    }

    /// How long a write that begins now may take: not beyond the claim that it begins
    /// under, since somebody else may lead soon after. Nothing when we do not lead.
    fn write_limit(&self) -> Option<Duration> {
        let rest = self.claim.rest(shell::clock::now())?;
        Some(self.timeout.min(rest))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        verb: &'static str,
        kind: String,
        key: &Key,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, EffectError> {
        let source = match tokio::time::timeout(limit, call).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Cause::Api(error),
            Err(_) => Cause::Timeout(limit),
        };
        Err(EffectError {
            verb,
            kind,
            key: key.clone(),
            source,
        })
    }

    fn api<K: Object>(&self, key: &Key) -> Api<K> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use serde_json::json;

    use super::*;
    use crate::deployment::check::tests::settings;
    use crate::fake::{self, Fake};

    fn object() -> ConfigMap {
        let metadata = json!({"namespace": "ns", "name": "a"});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[tokio::test]
    async fn the_first_write_answers_an_event_unless_it_had_its_time() {
        let client = Fake::default().client(|asked| Some((200, asked.body.clone())));
        let effects = fake::context(&client).effects;
        let (object, asked) = (object(), Some(shell::clock::now()));
        let (_, left) = answering("Any", asked, async {}).await;
        assert_eq!(left, asked);
        for (answers, left) in [(false, asked), (true, None)] {
            let write = effects.report(&object, answers);
            let (written, found) = answering("Any", asked, write).await;
            assert!(written.is_ok());
            assert_eq!(found, left);
        }
        let (written, left) = answering("Any", asked, effects.create(&object)).await;
        assert!(written.is_ok());
        assert_eq!(left, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_given_up_with_the_claim_that_it_began_under() {
        let (settings, rest) = (settings(), Duration::from_secs(5));
        assert!(rest < settings.call_timeout);
        let client = Fake::default().client(|_| None);
        let claim = Claim::none();
        let metrics = Metrics::register(&mut Registry::default());
        let effects = Effects::new(client, claim.clone(), &settings, None, metrics);
        claim.extend(shell::clock::now() + rest);
        let begin = tokio::time::Instant::now();
        let error = effects.create(&object()).await.unwrap_err();
        assert!(begin.elapsed() <= rest + Duration::from_millis(1));
        assert!(error.leaves_doubt(), "{error}");
    }

    #[tokio::test]
    async fn a_write_that_came_too_late_is_no_failed_write() {
        for (code, reason, failed) in [
            (404, "NotFound", false),
            (409, "Conflict", false),
            (403, "Forbidden", true),
            (500, "InternalError", true),
        ] {
            let client = Fake::default().client(move |_| fake::refusal(code, reason));
            let claim = Claim::none();
            claim.extend(shell::clock::now() + Duration::from_secs(60));
            let mut registry = Registry::default();
            let metrics = Metrics::register(&mut registry);
            let effects = Effects::new(client, claim, &settings(), None, metrics);
            assert!(effects.report(&object(), true).await.is_err());
            let mut shown = String::new();
            encode(&mut shown, &registry).unwrap();
            let counted = shown.contains("llava_operator_write_errors_total{");
            assert_eq!(counted, failed, "{code}: {shown}");
        }
    }
}
