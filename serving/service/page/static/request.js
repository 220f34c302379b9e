// Requests to the service: their JSON, the equivalent curl command, and their errors.

/** An error for the user. */
class Failure extends Error {
  constructor(title, detail, { retry = false, retryAfter = null, status = 0 } = {}) {
    super(title);
    Object.assign(this, { title, detail, retry, retryAfter, status });
  }
}

const SCORE_URL = new URL("score", document.baseURI.replace(/[?#].*$/, "")).href;
const PLACE_OF_IMAGE = "<image>";

/**
 * The request's JSON in two parts, before and after the image's base64.
 *
 * `parameters` are scoring parameters or null; `explanation` is null or the documented xai_parameters.
 */
function requestAround(parameters, explanation) {
  const row = explanation
    ? JSON.stringify({ image_base64: PLACE_OF_IMAGE, model_explainability: true, xai_parameters: explanation })
    : PLACE_OF_IMAGE;
  const request = { input_data: { columns: ["image"], data: [row] } };
  if (parameters) request.params = parameters;
  return JSON.stringify(request).split(PLACE_OF_IMAGE);
}

/** A POSIX shell command that sends the request for a file with this name. */
function curlCommand(fileName, parameters, explanation, keyNeeded) {
  const [before, after] = requestAround(parameters, explanation);
  const lines = [
    `{ printf %s ${quoted(before)}`,
    `  base64 < ${quoted(fileName)} | tr -d '\\n'`,
    `  printf %s ${quoted(after)}; } |`,
    `curl -sS ${quoted(SCORE_URL)} -H 'Content-Type: application/json' \\`,
  ];
  if (keyNeeded) lines.push(`  -H "Authorization: Bearer $KEY" \\`);
  lines.push("  --data-binary @-");
  return lines.join("\n");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A file's content in base64. */
function readBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () =>
      reject(new Failure("The file cannot be read", "It was moved or changed after you chose it; choose it again."));
    // An empty file gives "data:" without a comma; then send an empty text.
    if (file.size === 0) resolve("");
    else reader.readAsDataURL(file);
  });
}

/**
 * Send one image to the service; returns its answer. Throws a Failure, or an AbortError when cancelled.
 */
async function score(base64, parameters, explanation, key, signal) {
  const [before, after] = requestAround(parameters, explanation);
  if (before.length + base64.length + after.length > MODEL.max_request_bytes) {
    const limit = Math.floor(MODEL.max_request_bytes / 1e6);
    throw new Failure("The image is too large", `A request can be at most ${limit} MB, base64 included. Send a smaller image.`);
  }
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  let text;
  try {
    response = await fetch(SCORE_URL, { method: "POST", headers, body: before + base64 + after, signal });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service does not answer", "Check that it is running and that this machine is online.", {
      retry: true,
    });
  }
  const answer = parsed(text);
  if (response.ok && Array.isArray(answer) && answer.length === 1) return answer[0];
  throw failureOf(response, answer);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** The error to show for a response other than 200. */
function failureOf(response, answer) {
  const status = response.status;
  // The page sends one row, so its number says nothing.
  const message = (answer?.error?.message ?? "").replace(/^row 0: /, "");
  const detail = message ? message[0].toUpperCase() + message.slice(1) : `HTTP status ${status}`;
  const more = { status };
  if (status === 401 || status === 403) return new Failure("This service requires a key", detail, more);
  if (status === 429 || status === 503) {
    const seconds = Number(response.headers.get("Retry-After"));
    return new Failure("The service is busy", detail, { ...more, retry: true, retryAfter: seconds > 0 ? seconds : 2 });
  }
  if (status === 504) return new Failure("It took too long", detail, { ...more, retry: true });
  if (status === 413) return new Failure("The image is too large", detail, more);
  if (status === 422) return new Failure("This file cannot be scored", detail, more);
  if (status >= 500) return new Failure("The service failed", detail, { ...more, retry: true });
  if (response.ok) return new Failure("Unexpected response", "Something other than the service answers at this address.", more);
  return new Failure("The service rejected the request", detail, more);
}
