// Sends random records to a gateway as the SDKs encode them, and is the v2 behind it:
// each must arrive as the engine itself writes the record's JSON in UTF-8, where half of
// a surrogate pair is U+FFFD.
//
// node engine.js GATEWAY V2 SEED, where the first two are HOST:PORT.
const http = require("http");
const [gateway, v2, seed] = process.argv.slice(2);
const each = 100;

// Engines before 2019 write half of a pair as it is, and not as an escape.
const stringify = JSON.stringify;
const old = (...of) => stringify(...of)?.replace(/\\ud[89a-f][0-9a-f]{2}/g, (escape, at, text) => {
	const slashes = /\\*$/.exec(text.slice(0, at))[0].length;
	return slashes % 2 ? escape : String.fromCharCode(parseInt(escape.slice(2), 16));
});

let current = stringify;
JSON.stringify = (...of) => current(...of); // before an SDK takes it

// Each SDK with its way to write JSON. 3 has the engine write UTF-8.
const sdks = [];
for (const version of ["1.5.2", "1.9.2", "2.5.3", "3.1.4"]) {
	const encode = version === "3.1.4" ? null : require("./node_modules/td-js-sdk-" + version + "/lib/utils/objectToBase64.js");
	for (const write of [stringify, old]) sdks.push({version, encode, write});
}

// random is mulberry32: the same numbers for the same seed.
let state = Number(seed) >>> 0;
function random(below) {
	state = (state + 0x6d2b79f5) >>> 0;
	let t = Math.imul(state ^ (state >>> 15), state | 1);
	t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
	return Math.floor(((t ^ (t >>> 14)) >>> 0) / 0x100000000 * below);
}

const units = [
	() => random(0x80), () => random(0x800), () => random(0x10000),
	() => 0xd800 + random(0x400), () => 0xdc00 + random(0x400), () => [0x2028, 0xfeff, 0xfffd, 0xffff, 0][random(5)],
];

function text() {
	let all = "";
	for (let n = random(12); n > 0; n--) {
		if (random(4) === 0) all += ["😀", "\\ud83d", "%41+&=#", "\"\\/", "td_id", "é日"][random(6)];
		else all += String.fromCharCode(units[random(units.length)]());
	}
	return all;
}

function value(depth) {
	switch (random(depth > 2 ? 5 : 7)) {
	case 0: return text();
	case 1: return [0, -0, 1.5, 1e21, 5e-324, 12345678901234567000, -1, NaN][random(8)];
	case 2: return [true, false, null, undefined][random(4)];
	case 3: return new Date(random(0x7fffffff) * 1000);
	case 4: return random(0x7fffffff);
	case 5: return Array.from({length: random(4)}, () => value(depth + 1));
	default: return object(depth + 1);
	}
}

function object(depth) {
	const all = {};
	for (let n = random(5); n > 0; n--) all[text()] = value(depth);
	return all;
}

const arrived = [];
const server = http.createServer((request, response) => {
	const parts = [];
	request.on("data", (part) => parts.push(part));
	request.on("end", () => {
		arrived.push(request.url + " " + Buffer.concat(parts));
		response.setHeader("Content-Type", "application/json");
		response.end("{}");
	});
});

function send(method, query, body) {
	const [hostname, port] = gateway.split(":");
	const headers = body === undefined ? {} : {"Content-Type": "application/json"};
	return new Promise((resolve, reject) => {
		const request = http.request({hostname, port, method, headers, path: "/js/v3/event/db/tbl?api_key=1%2Fa&modified=1" + query}, (response) => {
			let answer = "";
			response.on("data", (part) => { answer += part; });
			response.on("end", () => resolve(response.statusCode + " " + answer));
		});
		request.on("error", reject);
		request.end(body);
	});
}

async function one({version, encode, write}, n) {
	const record = object(0);
	const meant = "/postback/v3/event/db/tbl " + Buffer.from(write(record), "utf8");
	let answer;
	current = write;
	const data = encode && "&data=" + encodeURIComponent(encode(record));
	current = stringify;
	if (!encode) answer = await send("POST", "", write(record));
	else if (n % 2) answer = await send("POST", data);
	else answer = await send("GET", data + "&callback=f");
	const want = encode && n % 2 === 0 ? '200 /**/f({"created":true});' : '200 {"created":true}';
	const came = arrived.splice(0);
	if (answer === want && came.length === 1 && came[0] === meant) return;
	console.log(stringify({version, old: write === old, answer, came, meant}));
	process.exitCode = 1;
}

server.listen(v2.split(":")[1], v2.split(":")[0], async () => {
	for (const sdk of sdks) {
		for (let n = 0; n < each; n++) await one(sdk, n);
	}
	console.log(sdks.length * each + " records");
	server.close();
	server.closeAllConnections();
});
