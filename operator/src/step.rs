//! One child object on its way to its wish: what exists is compared with what
//! should, and written only where they differ. Whose it is decides first: nothing
//! of others is ever taken over.

use crds::LlavaDeployment;
use crds::condition::reason;
use kube::{Resource, ResourceExt};
use serde_json::Value;

use crate::effects::{EffectError, Effects, Object};
use crate::key::Key;
use crate::subset;

/// What happens to one child.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It is as it should be.
    Keep,
    /// It does not exist.
    Create(Value),
    /// It differs.
    Apply(Value),
    /// One of an earlier owner of this name is still being removed.
    Wait,
    /// Somebody else's has the name.
    Taken,
    /// It is no longer wished for; its UID.
    Remove(String),
}

impl Step {
    /// Compares what exists with what should.
    pub fn towards<K: Object>(wanted: Value, found: Option<&K>, owner: &str) -> Self {
        match found {
            None => Self::Create(wanted),
            Some(found) if is_leaving(found, owner) => Self::Wait,
            Some(found) if !is_owned(found, owner) => Self::Taken,
            Some(found) if subset::holds(&wanted, found) => Self::Keep,
            Some(_) => Self::Apply(wanted),
        }
    }

    /// Removes what an earlier wish left.
    pub fn without<K: Object>(found: Option<&K>, owner: &str) -> Self {
        found
            .filter(|found| is_owned(*found, owner) && !is_leaving(*found, owner))
            .and_then(ResourceExt::uid)
            .map_or(Self::Keep, Self::Remove)
    }
}

/// A write that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The API server refused or did not answer.
    #[error(transparent)]
    Effect(#[from] EffectError),
    /// Somebody else's object has the name.
    #[error("{kind} {key} exists and does not belong to its {owner}; delete or rename it")]
    NameTaken {
        /// Its kind.
        kind: String,
        /// Its name.
        key: Key,
        /// The kind of whom it should belong to.
        owner: &'static str,
    },
    /// A child of ours is not what Kubernetes takes.
    #[error("cannot build {kind} {key}: {source}")]
    Build {
        /// Its kind.
        kind: String,
        /// Its name.
        key: Key,
        /// Why.
        source: serde_json::Error,
    },
}

impl StepError {
    /// One word for conditions.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NameTaken { .. } => reason::NAME_TAKEN,
            Self::Effect(_) | Self::Build { .. } => reason::CREATE_REFUSED,
        }
    }

    /// What people have to know of it; failures that pass by themselves are none of that.
    #[must_use]
    pub fn for_people(&self) -> Option<String> {
        match self {
            Self::Effect(error) => error.refusal().map(str::to_owned),
            Self::NameTaken { .. } | Self::Build { .. } => Some(self.to_string()),
        }
    }

    /// Whether the namespace or the owner itself is going away.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Effect(error) if error.is_gone())
    }
}

/// Brings one child to its wish; false when it has to be waited for.
///
/// # Errors
/// When it cannot be written, or somebody else's object has its name.
pub async fn settle<K: Object>(
    step: Step,
    key: &Key,
    owner: (&'static str, &str),
    effects: &Effects,
) -> Result<bool, StepError> {
    let kind = || K::kind(&()).to_string();
    let (owner_kind, owner) = owner;
    let taken = || StepError::NameTaken {
        kind: kind(),
        key: key.clone(),
        owner: owner_kind,
    };
    match step {
        Step::Keep => Ok(true),
        Step::Wait => Ok(false),
        Step::Taken => Err(taken()),
        Step::Remove(uid) => {
            effects.delete::<K>(key, &uid, false).await?;
            Ok(true)
        }
        Step::Apply(wanted) => {
            effects.apply::<K>(key, &wanted).await?;
            Ok(true)
        }
        Step::Create(wanted) => {
            let object: K = serde_json::from_value(wanted).map_err(|source| StepError::Build {
                kind: kind(),
                key: key.clone(),
                source,
            })?;
            match effects.create(&object).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_already_exists() => {
                    let ours = existing::<K>(key, (owner_kind, owner), effects).await?;
                    Ok(ours.is_some())
                }
                Err(error) => Err(error.into()),
            }
        }
    }
}

/// What has the name of an object that could not be created: our own by an answer that was
/// lost, or nothing while one of an earlier owner still goes. No cache can tell: those
/// hold objects with our labels alone.
///
/// # Errors
/// When it cannot be read, or is somebody else's.
pub async fn existing<K: Object>(
    key: &Key,
    (owner_kind, owner): (&'static str, &str),
    effects: &Effects,
) -> Result<Option<K>, StepError> {
    match effects.get::<K>(key).await? {
        Some(found) if is_owned(&found, owner) => Ok(Some(found)),
        Some(found) if !is_leaving(&found, owner) => Err(StepError::NameTaken {
            kind: K::kind(&()).to_string(),
            key: key.clone(),
            owner: owner_kind,
        }),
        _ => Ok(None),
    }
}

fn is_owned<K: Resource>(object: &K, owner: &str) -> bool {
    object
        .owner_references()
        .iter()
        .any(|reference| reference.controller == Some(true) && reference.uid == owner)
}

/// Whether the object is on its way out: that of an earlier owner of this name is
/// the garbage collector's.
fn is_leaving<K: Resource>(object: &K, owner: &str) -> bool {
    let group = LlavaDeployment::group(&());
    let mut owners = object.owner_references().iter();
    let of_our_kinds = owners.any(|owner| owner.api_version.split('/').next() == Some(&*group));
    (of_our_kinds && !is_owned(object, owner)) || object.meta().deletion_timestamp.is_some()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_belongs_to_others_is_taken_and_what_an_earlier_owner_left_is_waited_for() {
        let step = |metadata: Value| {
            let found: Pod = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            Step::towards(json!({}), Some(&found), "ours")
        };
        let owned = |api: &str, uid: &str| {
            let owner = json!({"apiVersion": api, "kind": "Any", "name": "a", "uid": uid, "controller": true});
            json!({"ownerReferences": [owner]})
        };
        assert_eq!(step(owned("llava.dev/v1alpha1", "ours")), Step::Keep);
        assert_eq!(step(owned("llava.dev/v1alpha1", "earlier")), Step::Wait);
        assert_eq!(step(json!({})), Step::Taken);
        assert_eq!(step(owned("apps/v1", "theirs")), Step::Taken);
    }
}
