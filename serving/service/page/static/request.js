// The request to the service: its JSON, the same as a curl command, and what can go wrong with it.

/** Something that went wrong, told to the user. */
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

/** A command for a POSIX shell that sends the request for the file of this name. */
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
      reject(new Failure("The file cannot be read", "It was moved or changed since it was chosen: choose it again."));
    // An empty file gives "data:", without a comma: then nothing is what is sent.
    if (file.size === 0) resolve("");
    else reader.readAsDataURL(file);
  });
}

/**
 * Ask the service for one image; the answer of its row. Throws a Failure, or an AbortError when stopped.
 */
async function score(base64, parameters, explanation, key, signal) {
  const [before, after] = requestAround(parameters, explanation);
  if (before.length + base64.length + after.length > MODEL.max_request_bytes) {
    const limit = Math.floor(MODEL.max_request_bytes / 1e6);
    throw new Failure("The image is too large", `A request may hold ${limit} MB, base64 included. Send a smaller image.`);
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
    throw new Failure("The service does not answer", "Is it still running, and is this machine still connected?", {
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

/** What an answer other than 200 means for the one who looks at the page. */
function failureOf(response, answer) {
  const status = response.status;
  // Of one row there is no need to say which.
  const told = (answer?.error?.message ?? "").replace(/^row 0: /, "");
  const detail = told ? told[0].toUpperCase() + told.slice(1) : `HTTP status ${status}`;
  const more = { status };
  if (status === 401 || status === 403) return new Failure("This service needs a key", detail, more);
  if (status === 429 || status === 503) {
    const seconds = Number(response.headers.get("Retry-After"));
    return new Failure("The service is busy", detail, { ...more, retry: true, retryAfter: seconds > 0 ? seconds : 2 });
  }
  if (status === 504) return new Failure("It took too long", detail, { ...more, retry: true });
  if (status === 413) return new Failure("The image is too large", detail, more);
  if (status === 422) return new Failure("This file cannot be scored", detail, more);
  if (status >= 500) return new Failure("The service failed", detail, { ...more, retry: true });
  if (response.ok) return new Failure("This is no answer of the service", "Something else answers at its address.", more);
  return new Failure("The service refused the request", detail, more);
}
