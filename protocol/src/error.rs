//! The error body that OpenAI's SDKs read, and its fixed vocabulary of types.

use serde::{Deserialize, Serialize};

/// `{"error": {...}}`, the body of every refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ApiError,
}

/// What went wrong, where, and a code that programs can rely on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// For people: what, where and how to mend it. Never an address, a path or
    /// text from another system.
    pub message: String,
    /// The class of the error.
    #[serde(rename = "type")]
    pub kind: ErrorKind,
    /// The request field at fault, such as `messages[0].content`.
    pub param: Option<String>,
    /// A stable code such as `model_not_found`.
    pub code: Option<String>,
}

/// The classes of errors, as OpenAI names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is wrong; sending it again will not help.
    InvalidRequestError,
    /// The API key is missing or unknown.
    AuthenticationError,
    /// The named thing does not exist.
    NotFoundError,
    /// Too much work for now; try again after the time given.
    RateLimitError,
    /// No worker can take the request for now.
    ServiceUnavailableError,
    /// A stream broke after its first byte.
    StreamError,
    /// A fault on our side.
    ServerError,
}

impl ErrorKind {
    /// The HTTP status that goes with the class before the first byte is sent.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequestError => 400,
            Self::AuthenticationError => 401,
            Self::NotFoundError => 404,
            Self::RateLimitError => 429,
            Self::ServiceUnavailableError => 503,
            Self::StreamError | Self::ServerError => 500,
        }
    }
}

impl ApiError {
    /// An error of this class; add [`param`](Self::at) where a field is at fault.
    #[must_use]
    pub fn new(kind: ErrorKind, code: &str, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            kind,
            param: None,
            code: Some(code.to_owned()),
        }
    }

    /// Names the request field at fault.
    #[must_use]
    pub fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The JSON body, `{"error": {...}}`.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::json!({ "error": self }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_four_fields_that_the_sdks_read() {
        let error =
            ApiError::new(ErrorKind::NotFoundError, "model_not_found", "no model `x`").at("model");
        assert_eq!(
            error.to_json(),
            r#"{"error":{"code":"model_not_found","message":"no model `x`","param":"model","type":"not_found_error"}}"#
        );
    }
}
