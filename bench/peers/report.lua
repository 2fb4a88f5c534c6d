-- What wrk sends beside its command line, and its results as one line of JSON.
-- Arguments: the method, the size of the body, and whether to close every
-- connection after its request.
function init(args)
	wrk.method = args[1]
	local size = tonumber(args[2])
	if size > 0 then
		local head, tail = '{"user":"alice","event":"view","page":"', '"}'
		wrk.headers["Content-Type"] = "application/json"
		wrk.body = head .. string.rep("x", size - #head - #tail) .. tail
	end
	if args[3] == "close" then
		wrk.headers["Connection"] = "close"
	end
end

function done(summary, latency, requests)
	local e = summary.errors
	io.write(string.format(
		'\n{"requests":%d,"seconds":%f,"errors":%d,"p50_ms":%f,"p99_ms":%f}\n',
		summary.requests, summary.duration / 1e6,
		e.connect + e.read + e.write + e.status + e.timeout,
		latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
